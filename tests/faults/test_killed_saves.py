"""SIGKILL after every write, flush, rename and deletion of a save, an export, a cache and a gallery.

At each moment what is chosen is complete, and the next process leaves nothing of what the killed one wrote.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from clip_core.data.decode_cache import DecodeCache
from clip_core.data.feature_cache import FeatureCache
from clip_core.inference.gallery_store import INDEX, Entry, FolderStore
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
from export.output_folder import put_in_place, recover, temporary_folder
from tests.faults.table import LONG
from tests.models import make_run

EVERY = 1 if LONG else 7  # `make faults` kills after each change
Record = Callable[[str, object], None]
CHANGES = frozenset(
    {
        "open",
        "write",
        "truncate",
        "fsync",
        "close",
        "rename",
        "replace",
        "unlink",
        "mkdir",
        "rmdir",
        "chmod",
        "execute",
        "executemany",
    }
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


def kills(call: Callable[[], None], every: int, record: Record) -> Iterator[None]:
    """Run `call` in children until one is not killed, and yield after each that was."""
    injected = 0
    while killed_after(1 + injected * every, call):
        injected += 1
        yield
    record("injected", injected)
    assert injected >= 2


@pytest.mark.fault("SIGKILL after each change of a save")
def test_a_kill_at_any_moment_of_a_save_leaves_a_complete_checkpoint_and_nothing_after_the_next(
    tmp_path: Path, record_property: Record
) -> None:
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
    record_property("injected", changes // EVERY)


@pytest.mark.fault("SIGKILL after each change of the cache of images")
def test_a_kill_at_any_moment_of_the_cache_leaves_a_whole_entry_or_none(
    tmp_path: Path, record_property: Record
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    cache, key = DecodeCache(tmp_path / "cache", 1e9), "k" * 40

    def fill(interrupted: bool = False) -> None:
        entry = cache.create(key, pixels.shape)
        assert entry is not None
        with entry:
            for row in np.flatnonzero(~entry.done):
                entry.put(int(row), pixels[row : row + 1])
                if interrupted and row == 2:
                    entry.suspend([])
                    return
            entry.finish([])

    def both() -> None:
        fill(interrupted=True)
        fill()

    for _ in kills(both, EVERY, record_property):
        opened = cache.open(key, pixels.shape)
        assert opened is None or (opened[0] == pixels).all()
        fill()
        opened = cache.open(key, pixels.shape)
        assert opened is not None
        assert (opened[0] == pixels).all()
        assert {path.name for path in cache.folder.iterdir()} == {f"{key}.npy", f"{key}.json"}
        for path in cache.folder.iterdir():
            path.unlink()


@pytest.mark.fault("SIGKILL after each change of the cache of features")
def test_a_kill_at_any_moment_of_the_features_leaves_whole_rows(tmp_path: Path, record_property: Record) -> None:
    keys = [bytes([number]) * 16 for number in range(70)]
    features = np.arange(140, dtype=np.float32).reshape(70, 2)

    def compute(folder: Path) -> None:
        found = FeatureCache("encoder", (2,), folder).compute(keys, lambda places: features[list(places)])
        assert (found == features).all()

    at = [tmp_path / "0"]
    for number, _ in enumerate(kills(lambda: compute(at[0]), EVERY, record_property), 1):
        compute(at[0])
        at[0] = tmp_path / str(number)


@pytest.mark.fault("SIGKILL after each change of a gallery")
def test_a_kill_at_any_moment_of_a_gallery_leaves_what_was_committed(tmp_path: Path, record_property: Record) -> None:
    rows = np.eye(8, 4, dtype=np.float32)
    entries = [Entry(f"{number}.png", 1, 1) for number in range(8)]
    folder = tmp_path / "gallery"

    def write() -> None:
        store = FolderStore(folder, "model", 4)
        with store.writing(lambda: None):
            missing = [entry for entry in entries if entry.path not in store.entries]
            for entry in missing:
                store.put([entry], rows[[entries.index(entry)]])
            store.remove(["0.png", "1.png", "2.png"])
            store.finish()

    for _ in kills(write, EVERY if LONG else 3 * EVERY, record_property):
        there = FolderStore(folder, "model", 4)
        paths = sorted(there.entries)
        expected = [rows[int(path[0])] for path in paths]
        assert not paths or (there.vectors(paths) == expected).all()
        write()
        there = FolderStore(folder, "model", 4)
        assert sorted(there.entries) == [f"{number}.png" for number in range(3, 8)]
        assert len(list(folder.glob("*.f32"))) == 1
        assert {path.name for path in folder.iterdir() if path.suffix != ".f32"} == {INDEX, "lock"}
        for path in folder.iterdir():
            path.unlink()


@pytest.mark.fault("SIGKILL after each change of an export's folder")
@pytest.mark.parametrize("swaps", [True, False])
def test_a_kill_at_any_moment_of_an_export_leaves_the_old_one_or_the_new(
    swaps: bool, tmp_path: Path, record_property: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:
        monkeypatch.setattr("export.output_folder._swap", lambda one, other: False)
    out = tmp_path / "bundle"

    def export(content: str = "new") -> None:
        recover(out)
        with temporary_folder(out) as folder:
            for name in ("weights", "manifest.json"):
                (folder / name).write_text(content)
            put_in_place(folder, out)

    export("old")
    for _ in kills(export, EVERY, record_property):
        recover(out)
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
        assert {path.read_text() for path in out.iterdir()} in ({"old"}, {"new"})
        assert len(list(out.iterdir())) == 2
        export("old")
