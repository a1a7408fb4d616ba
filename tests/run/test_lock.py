import os
import subprocess
import sys
from pathlib import Path

import pytest

from clip_core.errors import RunBusyError
from clip_core.run.lock import Lock, is_locked
from tests.conftest import command_environment

BUSY = RunBusyError("busy.")
HOLD = (
    "import pathlib, sys, time; from clip_core.run.lock import Lock; "
    "lock = Lock(pathlib.Path(sys.argv[1]), RuntimeError()); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def holder(path: Path) -> "subprocess.Popen[bytes]":
    """Another process that holds the lock."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, env=command_environment())
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    return child


def test_a_lock_of_another_process_is_refused_and_released_when_that_is_killed(path: Path) -> None:
    with holder(path) as child:
        assert is_locked(path)
        with pytest.raises(RunBusyError, match="busy"):
            Lock(path, BUSY)
        child.kill()
    assert not is_locked(path)
    Lock(path, BUSY).close()


def test_a_lock_can_be_taken_again_after_close(path: Path) -> None:
    first = Lock(path, BUSY)
    with pytest.raises(RunBusyError):
        Lock(path, BUSY)
    first.close()
    first.close()
    Lock(path, BUSY).close()


def test_asking_whether_it_is_locked_neither_takes_nor_creates_the_lock(path: Path) -> None:
    assert not is_locked(path)
    assert not path.exists()
    lock = Lock(path, BUSY)
    assert is_locked(path)
    assert is_locked(path)
    lock.close()


def test_a_child_process_does_not_keep_the_lock(path: Path) -> None:
    lock = Lock(path, BUSY)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock.close()
        assert not is_locked(path)
        child.communicate(b"\n")


def test_a_fifo_in_place_of_the_lock_does_not_block(path: Path) -> None:
    os.mkfifo(path)
    assert not is_locked(path)
