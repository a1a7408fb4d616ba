"""The first use of a stranger's file on this machine: in a process of its own, within limits of time and memory.

A library may compute for ever, take all memory or end the whole process on a hostile file. So a child tries the file
before this process does; what it passed is noted in the user's cache, and not tried again.
"""

import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clip_core.files import cache_folder
from clip_core.text import printable

_BY_THE_CLOCK = 4  # times the processor time, for a loaded machine
_LONGEST_REASON = 200  # characters
_OUT_OF_MEMORY = (b"memory allocation of", b"bad_alloc", b"capacity overflow")
_ONE_THREAD = {  # each thread reserves address space, which the limit counts
    "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1",
    "RUST_BACKTRACE": "0",
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """seconds: of processor time; memory: bytes beyond those that the child has mapped when it begins."""

    seconds: float
    memory: int


class TrialError(Exception):
    """What happened in the child, to be said after the file's path: `computed for more than 30 s and was stopped`."""


def try_first(key: str, module: str, task: bytes, limits: Limits) -> None:
    """Give `task` to a child, `python -m module`, which calls `run_trial`; nothing where `key` has passed before.

    Args:
        key: changes with the file's content and with the version of the library that reads it.
    Raises:
        TrialError: if the child refused the task, did not come to an end within the limits, or died.
    """
    mark = _mark(key)
    if mark.exists():
        return
    wall = _BY_THE_CLOCK * limits.seconds
    path = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
    environment = os.environ | _ONE_THREAD | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", module, str(limits.seconds), str(limits.memory)]
    try:
        done = subprocess.run(command, input=task, env=environment, capture_output=True, timeout=wall, check=False)
    except subprocess.TimeoutExpired:
        raise TrialError(_too_long(limits)) from None
    except OSError as error:
        raise TrialError(f"could not be tried in a process of its own ({error.strerror})") from None
    if done.returncode:
        raise TrialError(_reason(done, limits))
    remember(key)


def remember(key: str) -> None:
    """Note that a file was used here, or made here, so that it is not tried."""
    mark = _mark(key)
    with suppress(OSError):  # without a cache it is tried at each start
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def run_trial(work: Callable[[bytes], None]) -> None:
    """What the child does: limit itself, then `work` on the task; it ends with 1 and the reason where that raises."""
    task = sys.stdin.buffer.read()
    _limit(float(sys.argv[1]), int(sys.argv[2]))
    try:
        work(task)
    except MemoryError:
        _refuse(_OUT_OF_MEMORY[0].decode())
    except BaseException as error:  # of a library, whose panics are no Exceptions
        _refuse(str(error) or type(error).__name__)


def _limit(seconds: float, memory: int) -> None:
    """Of this process, for good; where the system has no such limit, its parent's clock is left."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, most in ((resource.RLIMIT_CPU, max(round(seconds), 1)), (resource.RLIMIT_AS, _mapped() + memory)):
        with suppress(OSError, ValueError):
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _mapped() -> int:
    """Bytes that this process has mapped; only Linux says."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 2**40


def _refuse(reason: str) -> None:
    sys.stdout.buffer.write(printable(reason, _LONGEST_REASON).encode("utf-8", "replace"))
    sys.stdout.flush()
    os._exit(1)  # a library may not come down after an error


def _reason(done: subprocess.CompletedProcess[bytes], limits: Limits) -> str:
    if done.returncode == -signal.SIGXCPU:
        return _too_long(limits)
    if any(words in done.stderr + done.stdout for words in _OUT_OF_MEMORY):
        return f"needs more than {limits.memory / 2**30:.3g} GB of memory"
    if done.returncode > 0 and done.stdout:
        return done.stdout.decode("utf-8", "replace")
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
    return f"ends the process that uses it ({how})"


def _too_long(limits: Limits) -> str:
    return f"computed for more than {limits.seconds:g} s and was stopped"


def _mark(key: str) -> Path:
    return cache_folder() / "ran" / hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
