"""The form of a new run: where the run goes, and what is kept."""

from pathlib import Path

from textual.widgets import Input

from clip_core.run.paths import find_runs
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_tui.app import ClipApp
from clip_tui.screens.new_run import NewRunScreen
from tests.tui.conftest import make_run
from tests.tui.pilot import says, screen_text, until

SLOW = 120.0  # seconds, in which a trainer process starts and fails


async def fill(app: ClipApp, **values: str) -> None:
    for name, value in values.items():
        app.screen.query_one(f"#{name}", Input).value = value


async def test_a_failed_start_keeps_what_was_typed_and_shows_its_error(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.json"
    pairs.write_text('[{"image": "nowhere.png", "caption": "a"}, {"image": "gone.png", "caption": "b"}]')
    app = ClipApp(tmp_path / "runs")
    async with app.run_test(size=(100, 40)) as pilot:
        await says(pilot, "No runs yet")
        await pilot.press("n")
        await says(pilot, "--data-file")
        await fill(app, **{"data-data_file": str(pairs), "optim-epochs": "3"})
        await pilot.pause()
        await pilot.press("ctrl+s")
        await says(pilot, "✗ failed", SLOW)
        await says(pilot, "nowhere.png")
        assert "Resume" not in screen_text(app)
        await pilot.press("1", "n")
        await until(pilot, lambda: isinstance(app.screen, NewRunScreen))
        await says(pilot, "nowhere.png")
        await until(pilot, lambda: app.screen.query_one("#optim-epochs", Input).value == "3")
        assert app.screen.query_one("#data-data_file", Input).value == str(pairs)
        assert "failed: " in screen_text(app)


async def test_what_was_typed_is_there_after_leaving_the_form(tmp_path: Path) -> None:
    app = ClipApp(tmp_path / "runs")
    async with app.run_test(size=(100, 40)) as pilot:
        await says(pilot, "No runs yet")
        await pilot.press("n")
        await says(pilot, "--data-file")
        await pilot.press(*"cats", "escape")
        await says(pilot, "No runs yet")
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, NewRunScreen) and app.screen.query_one(Input).value == "cats")


async def test_from_a_single_run_a_new_one_is_written_beside_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "X", state=State.FINISHED)
    app = ClipApp(run, open_run=run)
    assert app.new_runs_in == tmp_path / "runs"
    assert ClipApp(tmp_path / "runs").new_runs_in == tmp_path / "runs"
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.press("1", "n")
        await until(pilot, lambda: isinstance(app.screen, NewRunScreen))
        await pilot.pause()
        await fill(app, **{"data-data_file": str(tmp_path / "runs" / "pairs.json")})
        await pilot.press("ctrl+s")
        await until(pilot, lambda: bool(app.trainers))
    for path, process in app.trainers.items():
        process.kill()
        process.wait()
        assert path.parent == tmp_path / "runs"
        assert RunReader(path).paths.log.is_file()
    assert find_runs(run) == [run]
