"""SIGKILL after every write, flush, rename and deletion of a save: at each moment a complete checkpoint is chosen."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from clip_core.model.checkpoint import (
    delete_damaged,
    delete_superseded,
    load_model,
    read_meta,
    save_checkpoint,
    valid_checkpoints,
)
from clip_core.model.clip import CLIP
from clip_core.run.paths import META, RunPaths, checkpoint_name
from clip_core.run.writer import RunWriter
from tests.models import make_run

EVERY = 1 if "CLIP_TEST_KILLS" in os.environ else 5  # `make faults` kills after each change
CHANGES = frozenset(
    {"open", "write", "truncate", "fsync", "close", "rename", "replace", "unlink", "mkdir", "rmdir", "chmod"}
    | {"serialize_file", "__exit__"}  # of safetensors; of a file, which writes what was buffered
)


def save(writer: RunWriter, model: CLIP, step: int) -> None:
    """What the trainer does at a checkpoint that is the best so far."""
    name = checkpoint_name(step)
    tensors = {"moment": torch.ones(2)}
    save_checkpoint(
        writer.paths.checkpoints / name, model=model, tensors=tensors, state={"a": 1}, step=step, epoch=1, scores={}
    )
    writer.point_latest(name, step)
    writer.point_best(name, step, {})
    delete_superseded(writer.path, keep=1, best=name)


def killed_after(count: int, call: Callable[[], None]) -> bool:
    """Run `call` in a child that is killed after its change number `count`; whether it lived that long."""

    def counted(frame: FrameType, event: str, function: Any) -> None:
        nonlocal count
        if event == "c_return" and function.__name__ in CHANGES:
            count -= 1
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.setprofile(counted)
            call()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_a_kill_at_any_moment_of_a_save_leaves_a_complete_checkpoint_and_nothing_after_the_next(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    paths = RunPaths(run)
    before = load_model(run)
    model, step = before.model, before.step
    changes, found = 1, set()
    while True:

        def next_save(new: int = step + 1) -> None:
            save(RunWriter(run), model, new)

        died = killed_after(changes, next_save)
        assert load_model(run).step in (step, step + 1)
        for folder in paths.checkpoints.glob("step_*"):
            if (folder / META).exists():
                read_meta(folder)  # what looks complete is
        if not died:
            break
        changes += EVERY
        found.add(load_model(run).step - step)
        delete_damaged(run)  # as a resume does
        writer = RunWriter(run)
        step = int(valid_checkpoints(run)[0].name.removeprefix("step_")) + 1
        save(writer, model, step)
        writer.close()
        assert [folder.name for folder in paths.checkpoints.iterdir()] == [checkpoint_name(step)]
        assert not list(run.rglob(".*.tmp"))
    assert changes > 30
    assert found == {0, 1}
