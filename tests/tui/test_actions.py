"""The table of actions: everything made from it has every action."""

from collections import Counter
from pathlib import Path

import pytest

from clip_tui.actions import ACTIONS, APP, TABS, Action, actions_of, bindings
from clip_tui.app import ClipApp
from clip_tui.screens.compare import CompareScreen
from clip_tui.screens.new_run import NewRunScreen
from tests.tui.pilot import opened, until

PAGES = [tab.page for tab in TABS]


@pytest.mark.parametrize("action", [action for action in ACTIONS if not action.name.startswith("app.")])
def test_every_action_has_a_method(action: Action) -> None:
    owners = {APP: ClipApp, "new": NewRunScreen, "compare": CompareScreen}
    owner = owners.get(action.scope) or type(ClipApp.SCREENS[action.scope]())
    assert hasattr(owner, "action_" + action.name.partition("(")[0])


@pytest.mark.parametrize("scope", [*PAGES, "new", "compare"])
def test_a_key_means_one_thing_on_a_screen(scope: str) -> None:
    keys = Counter(key for action in actions_of(scope, APP) for key in action.key.split(","))
    assert [key for key, count in keys.items() if count > 1] == []


def test_a_tab_is_bound_but_left_out_of_the_footer() -> None:
    shown = {binding.description for binding in bindings(APP) if getattr(binding, "show", False)}
    assert shown == {"Help", "Quit", "Jump", "Palette"}


def test_keys_are_written_as_on_a_keyboard() -> None:
    keys = {action.name: action.keys for action in ACTIONS}
    assert keys["go('live')"] == "2 F2"
    assert keys["help"] == "?"
    assert keys["command_palette"] == "^p"
    assert keys["search"] == "/"


@pytest.mark.parametrize("page", PAGES)
async def test_the_command_palette_offers_the_actions_of_the_screen(runs: Path, page: str) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", page)
        offered = {command.help for command in app.get_system_commands(app.screen)}
        assert {action.help for action in actions_of(page, APP) if action.name != "command_palette"} <= offered


@pytest.mark.parametrize("page", PAGES[1:])
async def test_the_tabs_open_by_their_function_key_also_from_a_text_field(runs: Path, page: str) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "retrieve")
        await pilot.press("slash", f"f{PAGES.index(page) + 1}")
        await until(pilot, lambda: getattr(app.screen, "PAGE", "") == page)
