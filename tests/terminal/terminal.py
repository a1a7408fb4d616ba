"""A real pseudo-terminal: the command on one side, pyte's screen on the other."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pyte

ROOT = Path(__file__).parent.parent.parent
KEYS = {
    "enter": b"\r",
    "escape": b"\x1b",
    "tab": b"\t",
    "space": b" ",
    "ctrl+s": b"\x13",
    "ctrl+c": b"\x03",
    "ctrl+f": b"\x06",
}


# What the terminal in which the tests run says of itself; this is another one.
_OF_THE_SHELL = ("NO_COLOR", "CI", "COLUMNS", "LINES", "TMUX", "TMUX_PANE")


class Terminal:
    """Runs `python -m MODULE ...` as the leader of a session whose terminal this is."""

    def __init__(
        self, module: str, *arguments: str, cwd: Path, size: tuple[int, int] = (100, 30), cell: tuple[int, int] = (0, 0)
    ) -> None:
        self.columns, self.rows = size
        self.screen = pyte.Screen(self.columns, self.rows)
        self._stream = pyte.ByteStream(self.screen)
        self.received = b""
        self._master, slave = pty.openpty()
        pixels = self.columns * cell[0], self.rows * cell[1]  # 0: the terminal does not say
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", self.rows, self.columns, *pixels))
        environment = {key: value for key, value in os.environ.items() if key not in _OF_THE_SHELL}
        environment["XDG_CONFIG_HOME"] = str(cwd / "settings")  # what one test leaves behind is not the next one's
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=cwd, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=environment | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()

    def hang_up(self) -> None:
        """Close the terminal, as when its window is closed."""
        with contextlib.suppress(OSError):
            os.close(self._master)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def read(self, seconds: float = 0.1) -> None:
        """Take what has come within a moment."""
        ready, _, _ = select.select([self._master], [], [], seconds)
        if ready:
            try:
                block = os.read(self._master, 65536)
            except OSError:  # the other side is closed
                time.sleep(seconds)
                return
            self.received += block
            self._stream.feed(block)

    def wait_for(self, words: str, seconds: float = 60.0) -> None:
        """Until the screen shows the words."""
        deadline = time.monotonic() + seconds
        while words not in self.text:
            if time.monotonic() > deadline:
                raise AssertionError(f"{words!r} did not appear within {seconds} s; the screen:\n{self.text}")
            self.read()

    def press(self, *keys: str) -> None:
        """Type keys, by name or as characters, at a person's pace."""
        for key in keys:
            os.write(self._master, KEYS.get(key, key.encode()))
            self.read(0.05)

    def type(self, text: str) -> None:
        """A whole text at once, as it arrives when it is pasted or typed fast."""
        os.write(self._master, text.encode())
        self.read(0.05)

    def wait(self, seconds: float = 30.0) -> int:
        """Until the command has ended; its exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"it did not end within {seconds} s; the screen:\n{self.text}")
            self.read()
        return int(self.process.returncode)


def _take_terminal() -> None:
    """In the child: the terminal on its standard input is its controlling terminal; its Ctrl-C and its end count."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def end(pid: int) -> None:
    """Stop a process that a test left running."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" if _has_proc() else True


def _has_proc() -> bool:
    return Path("/proc/self/stat").exists()


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Until the callable says so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to be within {seconds} s"
        time.sleep(0.02)
