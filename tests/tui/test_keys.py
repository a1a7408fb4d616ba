"""Footer and tables."""

from pathlib import Path

import pytest
from textual.widgets import DataTable

from clip_core.run.records import State
from clip_tui.app import ClipApp
from clip_tui.widgets.keys import fitting
from tests.tui.conftest import make_run
from tests.tui.pilot import says, screen_text, until


@pytest.mark.parametrize(("room", "shown"), [(11, 3), (12, 3), (10, 2), (9, 2), (8, 1), (1, 0)])
def test_only_whole_keys_are_shown_and_an_ellipsis_for_the_others(room: int, shown: int) -> None:
    assert fitting([4, 4, 4], room) == shown


async def test_no_key_of_the_footer_is_cut_and_a_wider_terminal_shows_more(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: screen_text(app).rstrip().endswith("^o Jump ? Help …"))
        await pilot.resize_terminal(100, 24)
        await until(pilot, lambda: screen_text(app).rstrip().endswith("^p Palette"))
        await pilot.resize_terminal(60, 24)
        await until(pilot, lambda: screen_text(app).rstrip().endswith("c Compare ? Help …"))


async def test_end_and_home_go_to_the_last_and_the_first_run(runs: Path) -> None:
    make_run(runs / "second", state=State.FINISHED)
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await says(pilot, "second")
        table = app.screen.query_one("#runs", DataTable)
        await pilot.press("end")
        assert table.cursor_row == table.row_count - 1 > 0
        await pilot.press("home")
        assert table.cursor_row == 0
