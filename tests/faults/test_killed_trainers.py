"""SIGKILL of a real trainer, at random moments and while it saves: every one resumes, as the run that never stopped."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_core.model.checkpoint import load_model, valid_checkpoints
from clip_core.run.paths import RunPaths
from tests.forked import Forked
from tests.running import SMALL, assert_same_run, lines, start
from tests.streams import shards

KILLS = int(os.environ.get("CLIP_TEST_KILLS", "3"))  # `make faults` asks for more
STREAM_KILLS = min(KILLS, 20)  # of a run of 24 steps
EVERY = 3  # steps between checkpoints
FLAGS = [*SMALL, "--epochs", "20", "--checkpoint-every", str(EVERY), "--eval-every", "7", "--log-every", "1"]
LATEST = 1.5  # seconds after the start


STREAM = [
    "--data", "shards/{000..002}.tar", "--stream", "--val-pairs", "8", "--epochs", "3", "--batch-size", "8",
    "--readers", "2", "--shuffle-buffer", "16", *SMALL[5:], "--tokenizer", "char", "--checkpoint-every", "3",
    "--eval-every", "10", "--log-every", "1",
]  # fmt: skip


@pytest.mark.fault("SIGKILL of a trainer, at random and while it saves")
def test_killed_again_and_again_it_is_the_run_that_was_never_stopped(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    random.seed(0)
    whole, redone, runs, killed, finished = tmp_path / "whole", [], 0, 0, False
    run_to_the_end("--run-dir", "whole", *FLAGS, cwd=tmp_path)
    while killed < KILLS or not finished:
        finished = False
        run = tmp_path / f"parts{runs}"
        paths = RunPaths(run)
        before = latest(run)
        flags = ["--resume"] if paths.config.is_file() else FLAGS
        child = start("--run-dir", run.name, *flags, cwd=tmp_path)
        if killed < KILLS:
            kill_at(child, killed % 2 == 1, paths.checkpoints)
        _, said = child.communicate()
        code = child.returncode
        assert code in (0, -signal.SIGKILL), said
        killed += code != 0
        if code == 0:
            assert_same_run(whole, run)
            finished, runs = True, runs + 1
        else:
            redone.append(max((line["step"] for line in lines(run, "train")), default=0) - latest(run))
            assert latest(run) >= before
            assert 0 <= redone[-1] <= EVERY
    record_property("injected", killed)
    record_property("redone", redone)


@pytest.mark.fault("SIGKILL of a trainer that streams")
def test_a_stream_killed_at_any_step_is_read_on_as_if_it_had_never_stopped(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    shards(tmp_path / "shards", [30, 21, 26])
    whole, run = tmp_path / "stream", tmp_path / "killed"
    run_to_the_end("--run-dir", whole.name, *STREAM, cwd=tmp_path)
    steps, redone = sorted(random.sample(range(1, 24), STREAM_KILLS)), []
    for step in steps:
        flags = ["--resume"] if RunPaths(run).config.is_file() else STREAM
        child = start("--run-dir", run.name, *flags, cwd=tmp_path)
        kill_at_step(child, run, step)
        _, said = child.communicate()
        assert child.returncode == -signal.SIGKILL, said
        redone.append(max((line["step"] for line in lines(run, "train")), default=0) - latest(run))
        assert 0 <= redone[-1] <= EVERY + 1  # the step under way too
    run_to_the_end("--run-dir", run.name, "--resume", cwd=tmp_path)
    assert_same_run(whole, run)
    record_property("injected", len(steps))
    record_property("redone", redone)


def run_to_the_end(*flags: str, cwd: Path) -> None:
    child = start(*flags, cwd=cwd)
    _, said = child.communicate()
    assert child.returncode == 0, said


def kill_at_step(child: Forked, run: Path, step: int) -> None:
    """SIGKILL once a step is in the metrics; the run has begun then."""
    while not any(line["step"] >= step for line in lines(run, "train")):
        assert child.poll() is None, "it ended before"
        time.sleep(0.002)
    child.kill()


def kill_at(child: Forked, in_a_save: bool, checkpoints: Path) -> None:
    """SIGKILL at a random moment; the first time that a checkpoint is being written then, if `in_a_save`."""
    time.sleep(random.uniform(0, LATEST))
    until = time.time() + 1
    while in_a_save and not any(checkpoints.glob(".step_*.tmp")) and time.time() < until:
        time.sleep(0.0005)
    child.kill()


def latest(run: Path) -> int:
    """The step that a resume begins with; the checkpoint that is chosen for use loads."""
    found = valid_checkpoints(run)
    if not found:
        return 0
    assert load_model(run).step > 0
    return int(found[0].name.removeprefix("step_"))
