"""Requests and checkpoints of a trainer between its steps; whole runs are in test_resume.py and tests/faults."""

from pathlib import Path

from clip_core.model.checkpoint import read_meta, valid_checkpoints
from clip_core.run.reader import RunReader
from clip_core.training.request_queue import perform
from clip_core.training.trainer import Trainer
from tests.running import lines
from tests.training.conftest import Build, small_config


def serve(trainer: Trainer) -> None:
    trainer.requests.take(trainer.progress.step)
    while request := trainer.requests.next():
        perform(request, trainer)


def test_a_checkpoint_saved_automatically_is_kept_once_it_is_requested(
    build: Build, shapes: Path, tmp_path: Path
) -> None:
    trainer = build(small_config(shapes, tmp_path / "run", run={"keep_checkpoints": 1}))
    trainer.progress.step = 1
    trainer.save()
    requested = trainer.writer.paths.checkpoints / "step_0000001"
    assert read_meta(requested)["kept"] is False
    written = (requested / "model.safetensors").stat().st_mtime_ns
    RunReader(tmp_path / "run").ask("checkpoint")
    serve(trainer)
    assert read_meta(requested)["kept"] is True
    assert (requested / "model.safetensors").stat().st_mtime_ns == written  # marked, not written again
    for step in (2, 3):
        trainer.progress.step = step
        trainer.save()
    assert [folder.name for folder in valid_checkpoints(tmp_path / "run")] == ["step_0000003", "step_0000001"]
    (event,) = lines(tmp_path / "run", "event")
    assert (event["outcome"], event["message"]) == ("done", "checkpoint step_0000001 saved and kept")


def test_without_a_request_the_latest_and_the_best_checkpoint_stay(build: Build, shapes: Path, tmp_path: Path) -> None:
    trainer = build(small_config(shapes, tmp_path / "run", run={"keep_checkpoints": 1}))
    for step in (1, 2, 3, 4):
        trainer.progress.step = step
        if step == 2:
            trainer.evaluate()  # the first evaluation, so the best
        trainer.save()
    assert [folder.name for folder in valid_checkpoints(tmp_path / "run")] == ["step_0000004", "step_0000002"]
    best = RunReader(tmp_path / "run").best()
    assert best is not None
    assert best.checkpoint == "step_0000002"


def test_a_requested_checkpoint_that_is_damaged_is_refused_and_the_run_goes_on(
    build: Build, shapes: Path, tmp_path: Path
) -> None:
    trainer = build(small_config(shapes, tmp_path / "run"))
    trainer.progress.step = 1
    trainer.save()
    (trainer.writer.paths.checkpoints / "step_0000001" / "model.safetensors").write_bytes(b"")
    RunReader(tmp_path / "run").ask("checkpoint")
    serve(trainer)
    (event,) = lines(tmp_path / "run", "event")
    assert event["outcome"] == "refused"
    assert "model.safetensors is damaged" in event["message"]


def test_a_requested_learning_rate_scales_the_schedule_and_survives_a_stop_while_paused(
    build: Build, shapes: Path, tmp_path: Path
) -> None:
    config = small_config(shapes, tmp_path / "run")
    trainer = build(config)
    trainer.progress.step = 20
    planned = [trainer.schedule.learning_rate(step) for step in (20, 60)]
    reader = RunReader(tmp_path / "run")
    reader.ask("pause")
    reader.ask("learning_rate", planned[0] / 4)
    serve(trainer)
    assert [trainer.schedule.learning_rate(step) for step in (20, 60)] == [rate / 4 for rate in planned]
    assert lines(tmp_path / "run", "event")[-1]["message"].endswith("the schedule goes on from there")
    trainer.save()  # as a stop does; the checkpoint of the pause is there already
    resumed = build(config, resume=True)
    resumed.resume()
    assert [resumed.schedule.learning_rate(step) for step in (20, 60)] == [rate / 4 for rate in planned]
