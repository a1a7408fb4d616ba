"""`--minutes` trains for a time, and its schedule ends where the time does."""

import time
from pathlib import Path

import pytest

from clip_core.run.reader import RunReader
from clip_core.run.records import State
from tests.conftest import SHORT_RUN, clip_train
from tests.running import lines, start, wait_for_step, wait_until

TIMED = [*SHORT_RUN[2:], "--lr", "0.001", "--min-lr", "0.01"]


def test_the_schedule_ends_where_the_time_does_and_such_a_run_does_not_go_on(shapes: Path, tmp_path: Path) -> None:
    done = clip_train("--data-file", str(shapes), "--run-dir", "run", "--minutes", "0.05", *TIMED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0.05 minutes of" in done.stdout
    reader = RunReader(tmp_path / "run")
    last_step = lines(tmp_path / "run", "train")[-1]
    last_evaluation = lines(tmp_path / "run", "eval")[-1]
    status = reader.status()
    assert status is not None
    assert status.state is State.FINISHED
    assert last_step["step"] == last_evaluation["step"] == status.step == status.steps
    assert last_step["lr"] == pytest.approx(1e-5)  # min-lr of the peak: the schedule came to its end
    assert last_evaluation["train_seconds"] > 2.5  # to the nearest step

    done = clip_train("--run-dir", "run", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {status.step}" in done.stdout
    again = reader.status()
    assert again is not None
    assert (again.step, again.state) == (status.step, State.FINISHED)


def test_a_pause_is_not_time_of_training(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--data-file", str(shapes), "--run-dir", "run", "--minutes", "0.05", *TIMED]
    child = start(*flags, cwd=tmp_path)
    wait_for_step(run, 2, child)
    reader = RunReader(run)
    reader.ask("pause")
    wait_until(lambda: reader.state() is State.PAUSED)
    paused = reader.status()
    assert paused is not None
    time.sleep(4)  # more than the whole of its time
    reader.ask("resume")
    assert child.wait(timeout=300) == 0
    status = reader.status()
    assert status is not None
    assert status.train_seconds > 2.5  # to the nearest step
    (resumed,) = (line["time"] for line in lines(run, "event") if line.get("pace") == "restart")
    last = lines(run, "train")[-1]["time"]
    assert last - resumed >= status.train_seconds - paused.train_seconds - 0.1
    assert status.step > paused.step


def test_epochs_and_minutes_are_not_both_asked_for(shapes: Path, tmp_path: Path) -> None:
    done = clip_train("--data-file", str(shapes), "--minutes", "1", "--epochs", "3", cwd=tmp_path)
    assert done.returncode == 2
    assert "--epochs cannot be combined with --minutes" in done.stderr
