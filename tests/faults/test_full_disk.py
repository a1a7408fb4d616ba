"""A disk that fills up while a run saves, and one that became read-only: one sentence, no checkpoint lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clip_core.model.checkpoint import load_model, read_meta, valid_checkpoints
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from tests.conftest import clip_train, command_environment
from tests.models import ROOT
from tests.running import SMALL

FLAGS = [*SMALL, "--epochs", "20", "--checkpoint-every", "1", "--eval-every", "7", "--keep-checkpoints", "100"]
INSIDE = "CLIP_TEST_IN_A_NAMESPACE"


def mount(*arguments: object) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


def in_a_namespace(test: str) -> None:
    """Run a test where this user may mount: in a user namespace of its own, which needs no root."""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m", "pytest", "-q", test],
        cwd=ROOT, env=command_environment() | {INSIDE: "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (
        "a small disk could not be mounted, or what follows is wrong; run this as root, or where user namespaces are "
        f"allowed (unshare --user --map-root-user --mount):\n{done.stdout}{done.stderr}"
    )


@pytest.mark.fault("full disk, file-size limit or read-only disk")
def test_a_disk_that_fills_up_or_is_read_only_is_one_sentence_and_loses_no_checkpoint(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=12m", "tmpfs", disk):  # a few checkpoints of the small run
        assert INSIDE not in os.environ, "mounting is not allowed"
        in_a_namespace(request.node.nodeid)
        return
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", str(disk)], check=True))
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
