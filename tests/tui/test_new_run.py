"""The form of a new run: where the run goes, and what is kept."""

from pathlib import Path

from textual.widgets import Input, Static

from clip_core.run.paths import find_runs
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_tui.app import ClipApp
from clip_tui.form import FIRST
from clip_tui.screens.new_run import FIELDS, NewRunScreen
from clip_tui.settings import Settings
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


async def test_a_changed_form_is_left_only_after_a_question_and_what_was_typed_can_be_kept(tmp_path: Path) -> None:
    settings = Settings.load(tmp_path / "settings.json")
    app = ClipApp(tmp_path / "runs", settings=settings)
    async with app.run_test(size=(100, 40)) as pilot:
        await says(pilot, "No runs yet")
        await pilot.press("n")
        await says(pilot, "--data-file")
        await pilot.press("escape")
        await says(pilot, "No runs yet")
        await pilot.press("n")
        await until(
            pilot, lambda: isinstance(app.screen, NewRunScreen) and app.screen.query_one("#data-data_file").has_focus
        )
        await pilot.press(*"cats", "escape")
        await says(pilot, "The form was changed")
        await pilot.press("escape")
        assert isinstance(app.screen, NewRunScreen), "it stays open"
        await pilot.press("escape", "k")
        await says(pilot, "No runs yet")
    assert Settings.load(tmp_path / "settings.json").draft == {"data-data_file": "cats"}, "also for the next app"


async def test_the_draft_of_a_run_that_started_is_not_the_next_form(runs: Path) -> None:
    app = ClipApp(runs)
    app.settings.draft, app.settings.draft_run = {"data-data_file": "cats"}, runs / "live"
    async with app.run_test(size=(100, 40)) as pilot:
        await says(pilot, "● running")
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, NewRunScreen))
        await until(pilot, lambda: app.screen.query_one("#data-data_file").has_focus)
        assert app.screen.query_one("#data-data_file", Input).value == ""
        assert app.settings.draft == {}


async def test_eight_settings_are_shown_and_the_others_are_found(tmp_path: Path) -> None:
    app = ClipApp(tmp_path / "runs")
    async with app.run_test(size=(120, 50)) as pilot:
        await says(pilot, "No runs yet")
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, NewRunScreen))
        await pilot.pause(0.2)
        assert _shown(app) == list(FIRST)
        await pilot.press("ctrl+f", *"patch drop")
        await until(pilot, lambda: _shown(app) == ["patch_dropout"])
        await pilot.press("enter", *"0.9x", "ctrl+s")
        await until(pilot, lambda: app.screen.query_one("#optim-patch_dropout").has_focus)
        beside = str(app.screen.query_one("#row-optim-patch_dropout .description", Static).render())
        assert beside.startswith("--patch-dropout is '0.9x'"), "the mistake is beside its field, which has the focus"
        assert _shown(app) == [*FIRST, "patch_dropout"]
        await pilot.press("ctrl+g")
        assert len(_shown(app)) == len(FIELDS)


def _shown(app: ClipApp) -> list[str]:
    rows = [(field.name, app.screen.query_one(f"#row-{field.id}").display) for field in FIELDS]
    first = {name: place for place, name in enumerate(FIRST)}
    return sorted((name for name, shown in rows if shown), key=lambda name: first.get(name, 99))


async def test_automatic_values_are_previewed_as_training_would_choose_them(trained_run: Path, shapes: Path) -> None:
    decisions = {each.setting: each.value for each in RunReader(trained_run).record().decisions}
    app = ClipApp(trained_run.parent / "none")
    async with app.run_test(size=(160, 50)) as pilot:
        await says(pilot, "No runs yet")
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, NewRunScreen))
        await fill(app, **{"data-data_file": str(shapes), "run-device": "cpu", "model-image_size": "32"})
        await pilot.press("ctrl+r")
        await says(pilot, "about 162 training pairs", SLOW)
        shown = str(app.screen.query_one("#row-optim-lr .description", Static).render())
        assert shown.startswith(f"{decisions['lr']:.5f}".rstrip("0")), shown
        app.screen.query_one("#optim-batch_size").focus()
        await says(pilot, "chosen: about 16 steps per epoch")  # whole, below the form


async def test_a_clone_begins_with_the_settings_of_the_run(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(120, 50)) as pilot:
        await says(pilot, "● running")
        await pilot.press("slash", *"live", "enter", "k")
        await says(pilot, "New run, from live")
        path = str(runs / "pairs.json")
        await until(pilot, lambda: app.screen.query_one("#data-data_file", Input).value == path)


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
