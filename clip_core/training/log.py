"""What the trainer prints: to the terminal while there is one, and always to train.log."""

import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from clip_core.text import printable


class Log:
    """Plain lines, or a progress bar with lines above it where a person watches.

    A terminal that was closed stops being written to; training goes on.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None
        self._bar: tqdm[Any] | None = None
        self._terminal_open = True
        self.interactive = sys.stdout.isatty() and sys.stderr.isatty()
        self._early: list[str] = []

    def to_file(self, path: Path) -> None:
        """Also write to `path`, from the first line on, unless standard output is already that file."""
        if not _is_stdout(path):
            self._file = path.open("a", encoding="utf-8", buffering=1)
            self._file.writelines(line + "\n" for line in self._early)
        self._early.clear()

    def say(self, line: str) -> None:
        line = printable(line)
        if self._file:
            self._file.write(line + "\n")
        else:
            self._early.append(line)
        self._on_terminal(lambda: tqdm.write(line) if self._bar else print(line, flush=True))

    def start_bar(self, steps: int, done: int) -> None:
        if self.interactive:
            self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.05)

    def advance(self, figures: dict[str, str]) -> None:
        """One step further; `figures` stand beside the bar."""
        bar = self._bar
        if bar is not None:
            bar.set_postfix(figures, refresh=False)
            self._on_terminal(lambda: bar.update())

    def foresee(self, steps: int) -> None:
        """The bar's end has moved."""
        if self._bar is not None:
            self._bar.total = steps

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


def _is_stdout(path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), path.stat())
    except (OSError, ValueError):
        return False


class Pace:
    """Images a second, the share of time waiting for data, and the time left, since it was last asked."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._waited = 0.0
        self._images = 0
        self.last = 0.0

    def count(self, images: int) -> None:
        self._images += images

    def skip(self, seconds: float) -> None:
        """Leave time out that was not spent training: evaluation, saving, a pause."""
        self._since += seconds

    def read(self, waited: float) -> dict[str, float]:
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        self.last = self._images / elapsed
        share = min(max((waited - self._waited) / elapsed, 0.0), 1.0)
        self._since, self._waited, self._images = now, waited, 0
        return {"images_per_second": round(self.last, 1), "data_wait": round(share, 4)}
