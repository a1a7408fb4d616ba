"""`--minutes` trains for a time, and its schedule ends where the time does."""

from pathlib import Path

import pytest

from clip_core.run_dir import RunReader, State
from tests.conftest import SHORT_RUN, clip_train

TIMED = [*SHORT_RUN[2:], "--lr", "0.001", "--min-lr", "0.01"]


def test_the_schedule_ends_where_the_time_does(shapes: Path, tmp_path: Path) -> None:
    done = clip_train("--data-file", str(shapes), "--run-dir", "run", "--minutes", "0.1", *TIMED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0.1 minutes of" in done.stdout
    reader = RunReader(tmp_path / "run")
    lines = reader.new_metrics()
    last_step = [line for line in lines if line["kind"] == "train"][-1]
    last_evaluation = [line for line in lines if line["kind"] == "eval"][-1]
    status = reader.status()
    assert status is not None
    assert status.state is State.FINISHED
    assert last_step["step"] == last_evaluation["step"] == status.step == status.steps
    assert last_step["lr"] == pytest.approx(1e-5)  # min-lr of the peak: the schedule came to its end
    assert last_evaluation["train_seconds"] > 5  # to the nearest step


def test_a_timed_run_that_was_stopped_goes_on_for_the_rest_of_its_time(shapes: Path, tmp_path: Path) -> None:
    flags = ["--data-file", str(shapes), "--run-dir", "run", "--minutes", "0.1", *TIMED]
    assert clip_train(*flags, cwd=tmp_path).returncode == 0
    reader = RunReader(tmp_path / "run")
    status = reader.status()
    assert status is not None
    ended = status.step
    done = clip_train("--run-dir", "run", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {ended}" in done.stdout
    status = reader.status()
    assert status is not None
    assert status.step <= ended + 1  # its time was over


def test_epochs_and_minutes_are_not_both_asked_for(shapes: Path, tmp_path: Path) -> None:
    done = clip_train("--data-file", str(shapes), "--minutes", "1", "--epochs", "3", cwd=tmp_path)
    assert done.returncode == 2
    assert "--epochs says how long to train, and so does --minutes" in done.stderr
