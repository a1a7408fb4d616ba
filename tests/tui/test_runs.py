"""The list of runs."""

from pathlib import Path

import pytest
from rich.text import Text
from textual.widgets import DataTable

from clip_core.run.paths import RunPaths
from clip_core.run.records import Label, State
from clip_core.run.writer import RunWriter
from clip_tui.app import ClipApp
from clip_tui.screens.compare import CompareScreen
from clip_tui.screens.runs import fitting
from tests.tui.conftest import BEST_STEP, SIZES, make_run
from tests.tui.pilot import opened, says, screen_text, until

ERROR = "340 of 5,000 images not found, first photos/0041.jpg (searched in /data/cats); correct --image-root. END"


@pytest.mark.parametrize("size", SIZES)
async def test_every_run_has_its_state_its_step_and_the_numbers_of_its_best_checkpoint(
    runs: Path, size: tuple[int, int]
) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=size) as pilot:
        for words in ("live", "older", "hostile", "● running", "✓ finished", "40 / 100"):
            await says(pilot, words)
        await says(pilot, f"mean recall 30.0% @{BEST_STEP}")
        assert "40.0%" not in screen_text(app), "the mean recall of the last evaluation, at step 40"


async def test_an_empty_directory_names_the_ways_to_begin(tmp_path: Path) -> None:
    app = ClipApp(tmp_path / "nowhere")
    async with app.run_test(size=(80, 24)) as pilot:
        await says(pilot, "No runs yet")
        await says(pilot, "clip-tui demo")


@pytest.mark.parametrize("size", SIZES)
async def test_a_run_that_failed_before_its_first_step_is_listed_with_its_whole_error(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    writer = RunWriter(tmp_path / "runs" / "broken")
    writer.status(state=State.FAILED, error=ERROR)
    writer.close()
    app = ClipApp(tmp_path / "runs")
    async with app.run_test(size=size) as pilot:
        await says(pilot, "✗ failed")
        await says(pilot, "END")
        assert app.screen.query_one("#runs", DataTable).row_count == 1
        await pilot.press("enter")
        await until(pilot, lambda: getattr(app.screen, "PAGE", "") == "live")
        await says(pilot, "END")
        assert "Resume" not in screen_text(app)


async def test_a_killed_run_says_that_its_heartbeat_is_missing(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "runs" / "gone")
    writer.status(state=State.RUNNING, pid=2**22 + 1, step=5, steps=10)  # a pid that no process has
    writer.close()
    app = ClipApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await says(pilot, "✗ killed (no heartbeat)")


async def test_runs_are_filtered_marked_compared_named_deleted_and_brought_back(runs: Path) -> None:
    make_run(runs / "second", state=State.FINISHED)
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50), notifications=True) as pilot:
        await says(pilot, "second")
        table = app.screen.query_one("#runs", DataTable)
        await pilot.press("slash", *"secnd")
        await until(pilot, lambda: table.row_count == 1)
        await pilot.press("enter", "space", "e")
        await says(pilot, "Name in the list")
        await pilot.press(*"[b]X", "enter")
        await says(pilot, "[b]X")
        await pilot.press("u")
        await until(pilot, lambda: "[b]X" not in screen_text(app))
        await pilot.press("e", *"new", "enter", "p", "a", *"why", "enter")  # faster than the list is read
        label = Label.find(RunPaths(runs / "second").label)
        assert label == Label(name="new", pinned=True, note="why")
        await pilot.press("u", "u", "u")
        await until(pilot, lambda: "★" not in screen_text(app))
        await pilot.press("escape")
        await until(pilot, lambda: table.row_count == 4)
        await pilot.press("home", "c")  # the marked one and the one under the cursor, unless it is the same
        await says(pilot, "Comparison" if isinstance(app.screen, CompareScreen) else "second")
        await pilot.press("escape", "slash", *"second", "enter", "d")
        await says(pilot, "4 checkpoints")
        await pilot.press("y")
        await until(pilot, lambda: not (runs / "second").exists())
        await says(pilot, "u brings it back")
        assert "Copied" not in screen_text(app), "y answers the question and does nothing else"
        await pilot.press("u")
        await until(pilot, lambda: (runs / "second").exists())


def test_a_narrow_column_takes_the_place_of_a_wide_one_that_does_not_fit() -> None:
    cells = {"": 2, "state": 10, "run": 17, "step": 12, "loss": 10, "best": 26, "seen": 4, "note": 0}
    row = {name: Text("x" * size) for name, size in cells.items()}
    assert list(fitting([row], 75)) == ["", "state", "run", "step", "loss", "seen", "note"]
    assert "best" in fitting([row], 80)


@pytest.mark.parametrize("width", [60, 80, 120, 160])
async def test_no_column_of_the_list_is_cut(runs: Path, width: int) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(width, 24)) as pilot:
        await says(pilot, "✓ finished")
        table = app.screen.query_one("#runs", DataTable)
        assert table.virtual_size.width <= table.content_size.width
        assert "40 / 100" in screen_text(app) or width == 60


async def test_a_comparison_names_runs_as_the_list_does_and_a_name_is_never_markup(runs: Path) -> None:
    make_run(runs / "[red]second", state=State.FINISHED)
    Label(name="[b]first").write(RunPaths(runs / "live").label)
    app = ClipApp(runs)
    async with app.run_test(size=(120, 24)) as pilot:
        await says(pilot, "[b]first")
        app.compare([runs / "live", runs / "[red]second"])
        await says(pilot, "Best checkpoint")
        assert "[b]first" in screen_text(app)
        assert "[red]second" in screen_text(app)


async def test_a_run_that_trains_is_not_deleted(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50), notifications=True) as pilot:
        await says(pilot, "● running")
        await pilot.press("slash", *"live", "enter", "d")
        await says(pilot, "stop it first")
        assert (runs / "live").exists()


async def test_the_cursor_is_on_the_run_that_was_open(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await says(pilot, "40 / 100")
        await opened(pilot, runs / "older", "live")
        await pilot.press("1")
        table = app.screen.query_one("#runs", DataTable)
        await until(pilot, lambda: "older" in str(table.get_row_at(table.cursor_row)))
        await pilot.press("home")
        await pilot.pause(0.1)
        assert table.cursor_row == 0, "it is put there once"


async def test_three_runs_with_long_paths_are_compared_without_scrolling(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(120, 40)) as pilot:
        app.compare([runs / "live", runs / "older", runs / "hostile"])
        await says(pilot, "Best checkpoint")
        table = app.screen.query_one("#comparison", DataTable)
        await until(pilot, lambda: 0 < table.virtual_size.width <= table.content_size.width)
