"""The trainer's log: lines on the terminal while there is one, and always in train.log; throughput."""

import io
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from clip_core.files import append_regular
from clip_core.text import printable


class Log:
    """Plain lines, or a progress bar below them on an interactive terminal.

    After the terminal was closed, nothing is written to it; training goes on. A `silent` one says nothing anywhere:
    that of every process but the first.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self._file: IO[str] | None = None
        self._bar: tqdm[Any] | None = None
        self._terminal_open = True
        self.interactive = not silent and sys.stdout.isatty() and sys.stderr.isatty()
        self._early: list[str] = []

    def to_file(self, path: Path) -> None:
        """Also write to `path`, including earlier lines, unless standard output is that file."""
        if not is_stdout(path):
            self._file = io.TextIOWrapper(append_regular(path), encoding="utf-8", line_buffering=True)
            self._file.writelines(line + "\n" for line in self._early)
        self._early.clear()

    def say(self, line: str) -> None:
        if self.silent:
            return
        line = printable(line)
        self.record(line)
        self._on_terminal(lambda: tqdm.write(line) if self._bar else print(line, flush=True))

    def record(self, line: str) -> None:
        """Write to train.log alone, for what the command prints on the terminal itself."""
        if self._file:
            self._file.write(printable(line) + "\n")
        else:
            self._early.append(printable(line))

    def start_bar(self, steps: int, done: int) -> None:
        if self.interactive:
            self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.05)

    def advance(self, figures: dict[str, str]) -> None:
        """Advance the bar by a step; `figures` are shown beside it."""
        bar = self._bar
        if bar is not None:
            bar.set_postfix(figures, refresh=False)
            self._on_terminal(lambda: bar.update())

    def set_steps(self, steps: int) -> None:
        """Change the total of the bar."""
        if self._bar is not None:
            self._bar.total = steps

    def set_step(self, done: int) -> None:
        """Set the bar back to a step."""
        if self._bar is not None:
            self._bar.n = done

    def close(self) -> None:
        if self._bar is not None:
            self._on_terminal(self._bar.close)
        if self._file:
            self._file.close()

    def _on_terminal(self, write: object) -> None:
        if not self._terminal_open:
            return
        try:
            assert callable(write)
            write()
        except OSError:
            self._terminal_open, self._bar = False, None
            sys.stdout = sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def is_stdout(path: Path) -> bool:
    """Whether standard output goes to this file."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), path.stat())
    except (OSError, ValueError):
        return False


class Pace:
    """Images per second and the data wait, since the last reading."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._waited = 0.0
        self._images = 0
        self.last = 0.0

    def count(self, images: int) -> None:
        self._images += images

    def skip(self, seconds: float) -> None:
        """Exclude time that was not training: evaluation, saving, a pause."""
        self._since += seconds

    def read(self, waited: float) -> dict[str, float]:
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        self.last = self._images / elapsed
        share = min(max((waited - self._waited) / elapsed, 0.0), 1.0)
        self._since, self._waited, self._images = now, waited, 0
        return {"images_per_second": round(self.last, 1), "data_wait": round(share, 4)}
