"""The Help page."""

from pathlib import Path

from clip_tui.actions import ACTIONS
from clip_tui.app import ClipApp
from clip_tui.screens.help import HelpScreen
from tests.tui.pilot import opened, screen_text, until


async def test_the_help_page_has_every_action_and_closes(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 180)) as pilot:
        await opened(pilot, runs / "live", "live")
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen) and "All screens" in screen_text(app))
        shown = screen_text(app)
        assert [action.help for action in ACTIONS if action.help not in shown] == []
        await pilot.press("escape")
        assert not isinstance(app.screen, HelpScreen)
