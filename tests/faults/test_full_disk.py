"""A disk that fills up while a run saves, and one that became read-only: one sentence, no checkpoint lost."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip_core.model.checkpoint import load_model, read_meta, valid_checkpoints
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from tests.conftest import clip_train
from tests.running import SMALL

FLAGS = [*SMALL, "--epochs", "20", "--checkpoint-every", "1", "--eval-every", "7", "--keep-checkpoints", "100"]


def mount(*arguments: object) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MB: a few checkpoints of the small run."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.getuid() != 0 or not mount("-t", "tmpfs", "-o", "size=12m", "tmpfs", place):
        pytest.skip("mounting a small disk needs root; the limit on file sizes is tested beside")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.fault("full disk, file-size limit or read-only disk")
def test_a_disk_that_fills_up_or_is_read_only_is_one_sentence_and_loses_no_checkpoint(
    disk: Path, tmp_path: Path
) -> None:
    run = disk / "run"
    done = clip_train("--run-dir", str(run), *FLAGS, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "could not be written" in done.stderr or "No space left" in done.stderr
    folders = sorted((run / "checkpoints").iterdir())
    assert len(folders) > 1
    assert all(read_meta(folder) for folder in folders)
    assert not list(run.rglob("*.tmp"))
    step = load_model(run).step
    assert RunReader(run).state() in (State.FAILED, State.KILLED)  # the status itself may not fit any more
    assert mount("-o", "remount,ro", disk)
    refused = clip_train("--resume", "--run-dir", str(run), cwd=tmp_path)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "Read-only file system" in refused.stderr
    assert load_model(run).step == step
    assert mount("-o", "remount,rw,size=100m", disk)
    assert clip_train("--resume", "--run-dir", str(run), cwd=tmp_path).returncode == 0
    assert valid_checkpoints(run)[0].name == "step_0000040"
