"""Trainers that start in a tenth of a second: forked from one process that has imported PyTorch, to be killed.

As a program (`python -m tests.faults.trainers`): for each line of standard input, a JSON list of flags, a child runs
clip-train with them; its process id and later its exit code are lines of the output. It never computes itself, so that
a child has all its threads to start.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.conftest import command_environment


class Trainers:
    """Starts clip-train in children, one at a time.

    Args:
        log: what they print.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self.log = process, log
        assert process.stdin is not None
        assert process.stdout is not None
        self._to: IO[str] = process.stdin
        self._from: IO[str] = process.stdout

    def start(self, *flags: str) -> int:
        """Returns the process id."""
        self._to.write(json.dumps(flags) + "\n")
        self._to.flush()
        return int(self._from.readline())

    def wait(self) -> int:
        """The exit code of the last one, negative for a signal."""
        assert self._from.readline() == "ended\n"
        self._to.write("\n")
        self._to.flush()
        return int(self._from.readline())

    def run(self, *flags: str) -> int:
        self.start(*flags)
        return self.wait()


@contextmanager
def trainers(folder: Path) -> Iterator[Trainers]:
    """Trainers with this working directory."""
    log = folder / "trainers.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=folder, env=command_environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
        )  # fmt: skip
    try:
        yield Trainers(process, log)
    finally:
        process.communicate(timeout=60)


def serve() -> None:
    import clip_core.training.session  # noqa: F401
    from clip_core.cli.train_command import run

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.dup2(2, 1)
                code = run(json.loads(line))
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(child, flush=True)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # its id stays taken: it may be killed a moment too late
        print("ended", flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
