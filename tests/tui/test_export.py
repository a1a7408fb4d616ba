"""The Export screen: one export at a time, also after the app was opened again, and what the bundle is of."""

import os
import time
from pathlib import Path

import pytest

from clip_core.run.paths import RunPaths, checkpoint_name
from clip_core.run.records import State, Status
from clip_tui.app import ClipApp
from clip_tui.models import model_choices
from clip_tui.screens.export import ExportState, export_text, read_export
from tests.tui.conftest import BEST_STEP, HOSTILE, SIZES
from tests.tui.pilot import opened, says, screen_text, until
from tests.tui.samples import manifest, write_bundle

NOW = 1_750_000_000.0
ERROR = "onnx/vision_model.onnx of step_0000040 differs from the model: max |diff| 3.2e-02; nothing was written."


def _status(run: Path, state: State, **values: object) -> None:
    status = Status(state=state, pid=os.getpid(), host=os.uname().nodename, heartbeat=time.time(), started=time.time())
    status.model_copy(update=values).write(RunPaths(run).export_status)


async def test_an_export_that_runs_is_recognised_by_an_app_that_did_not_start_it(runs: Path) -> None:
    run = runs / "live"
    _status(run, State.RUNNING)
    log = RunPaths(run).export_log
    log.write_text("converting the image encoder\n")
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await opened(pilot, run, "export")
        await says(pilot, "Export running for")
        await says(pilot, f"pid {os.getpid()}")
        await says(pilot, "converting the image encoder")
        await pilot.press("e")
        await says(pilot, "clip-export is working")
        write_bundle(run, step=20)
        await until(pilot, lambda: bool(getattr(app.screen, "_state", None) and app.screen._state.manifest))
        await pilot.press("b")  # nor is the bundle measured that is being replaced
        assert app.exports == {}, "no second export was started"
        assert log.read_text().startswith("converting")


async def test_a_new_export_has_the_precisions_of_the_bundle_that_it_replaces(runs: Path) -> None:
    write_bundle(runs / "live", step=20)
    known = manifest("live", 20)
    int8 = known.variants[0].model_copy(
        update={
            "precision": "int8",
            "vision": "onnx/vision_model_quantized.onnx",
            "text": "onnx/text_model_quantized.onnx",
        }
    )
    both = known.model_copy(update={"variants": (*known.variants, int8)})
    RunPaths(runs / "live").bundle_manifest.write_text(both.model_dump_json())
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "export")
        await says(pilot, "e exports fp32 + int8")
        await opened(pilot, runs / "older", "export")
        await says(pilot, "e exports fp32 ·")


@pytest.mark.parametrize("size", SIZES)
async def test_a_failed_export_shows_its_whole_error(runs: Path, size: tuple[int, int]) -> None:
    _status(runs / "live", State.FAILED, error=ERROR)
    app = ClipApp(runs)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, runs / "live", "export")
        await says(pilot, "Export failed")
        shown = screen_text(app).replace("│", " ").split()
        assert " ".join(ERROR.split()) in " ".join(shown)


async def test_the_screen_follows_an_export_to_its_bundle(runs: Path) -> None:
    run = runs / "live"
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, run, "export")
        await says(pilot, "No bundle yet")
        _status(run, State.RUNNING)
        await says(pilot, "Export running")
        write_bundle(run, step=BEST_STEP)
        _status(run, State.FINISHED)
        await says(pilot, "parity passed")
        await until(pilot, lambda: "Export running" not in screen_text(app))
        await says(pilot, "onnx/text_model.onnx")


async def test_a_start_that_fails_at_once_shows_its_log(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_tui.starter.EXPORT", "no_such_module")
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "export")
        await says(pilot, "No bundle yet")
        await pilot.press("e")
        await says(pilot, "Export failed with exit code 1")
        await says(pilot, "No module named no_such_module")


async def test_another_run_does_not_keep_the_export_of_the_first(runs: Path) -> None:
    _status(runs / "live", State.FAILED, error=ERROR)
    RunPaths(runs / "live").export_log.write_text("of the first run\n")
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "export")
        await says(pilot, "of the first run")
        await opened(pilot, runs / "older", "export")
        await says(pilot, "No bundle yet")
        assert "of the first run" not in screen_text(app)


def test_a_bundle_older_than_the_best_checkpoint_says_both_steps(runs: Path) -> None:
    write_bundle(runs / "live", step=20)
    text = export_text(read_export(runs / "live"), NOW).plain
    assert f"bundle of step 20, best checkpoint is step {BEST_STEP}" in text


def test_a_bundle_of_the_best_checkpoint_is_not_called_old(runs: Path) -> None:
    write_bundle(runs / "live", step=BEST_STEP)
    text = export_text(read_export(runs / "live"), NOW).plain
    assert "Older" not in text
    assert checkpoint_name(BEST_STEP) in text


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State.RUNNING, "Export running for 5 s (pid 7 on host)."),
        (State.STALLED, "Export running for 5 s (pid 7 on host): converting"),
        (State.FAILED, f"Export failed: {ERROR}"),
        (State.KILLED, "The last export was killed"),
        (State.STOPPED, "The last export was stopped"),
        (State.FINISHED, ""),
    ],
)
def test_each_state_of_an_export_is_said_before_the_bundle_that_is_there(state: State, words: str) -> None:
    message = "converting" if state is State.STALLED else None
    status = Status(state=state, pid=7, host="host", started=NOW - 5, error=ERROR, message=message)
    text = export_text(ExportState(Path("run"), (state, status), manifest("run", 20)), NOW).plain
    assert words in text
    assert "parity passed" in text
    assert not text.startswith("\n")


def test_the_old_bundle_is_used_and_named_where_its_replacement_was_interrupted(tmp_path: Path) -> None:
    write_bundle(tmp_path, step=BEST_STEP)
    paths = RunPaths(tmp_path)
    paths.bundle.rename(tmp_path / ".bundle.old")
    state = read_export(tmp_path)
    assert state.manifest is not None
    assert "was interrupted" in export_text(state, NOW).plain
    assert str(tmp_path / ".bundle.old") in export_text(state, NOW).plain
    assert "onnx" in [choice.name for choice in model_choices(tmp_path)]


def test_a_damaged_bundle_is_an_error(tmp_path: Path) -> None:
    write_bundle(tmp_path, step=20)
    RunPaths(tmp_path).bundle_manifest.write_text("{}")
    state = read_export(tmp_path)
    assert state.error is not None
    assert "damaged" in export_text(state, NOW).plain


def test_hostile_text_of_a_status_is_made_printable() -> None:
    for text in HOSTILE:
        status = Status(state=State.FAILED, error=text)
        shown = export_text(ExportState(Path("run"), (State.FAILED, status)), NOW).plain
        assert not set(shown) & set("\x1b\x07\x9b\u202e\r")
