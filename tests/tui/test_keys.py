"""Footer and tables."""

from pathlib import Path

import pytest
from textual.widgets import DataTable

from clip_core.run.records import State
from clip_tui.app import ClipApp
from clip_tui.widgets.keys import Options, fitting
from tests.tui.conftest import make_run
from tests.tui.pilot import opened, says, screen_text, until


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


async def test_a_click_chooses_a_row_and_a_second_one_anywhere_on_it_opens_it(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await says(pilot, "40 / 100")
        table = app.screen.query_one("#runs", DataTable)
        await pilot.click(table, offset=(8, 3))
        await until(pilot, lambda: table.cursor_row == 1)
        assert app.snapshot is None
        await pilot.click(table, offset=(30, 3))  # in another column
        await until(pilot, lambda: app.snapshot is not None)


async def test_a_click_on_a_pair_chooses_it_and_a_second_one_opens_it(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        page = (await opened(pilot, runs / "live", "data")).screen
        captions = page.query_one("#captions", Options)
        await until(pilot, lambda: captions.option_count == 6)
        await pilot.click(captions, offset=(5, 2))
        await until(pilot, lambda: captions.highlighted == 2)
        assert app.screen is page
        await pilot.click(captions, offset=(9, 2))
        await until(pilot, lambda: app.screen is not page)
