"""Progress of work on many images: a bar on a terminal, else a line now and then; and work that can be interrupted."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm

Progress = Callable[[int, int], None]  # images done, of how many
Item = TypeVar("Item")

_POLL_SECONDS = 0.2
_AHEAD = 4  # pieces of work queued for each thread


def no_progress(done: int, total: int) -> None:
    """For work that nobody watches."""


class DecodeProgress:
    """Images decoded, or bytes read, so far: on standard error if that is a terminal, else by `say` now and then.

    Nothing is shown of work that takes less than a second.

    Args:
        every: seconds between the lines that `say` gets.
        about: the number of all is an estimate, which changes.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        what: str = "decoded",
        unit: str = "image",
        every: float = 10.0,
        about: bool = False,
    ) -> None:
        self._say, self._what, self._unit, self._every = say, what, unit, every
        self._of = "of about" if about else "of"
        self._bar: tqdm[Any] | None = None
        self._started = self._spoken = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(
                    total=total,
                    desc=self._what,
                    unit=self._unit,
                    unit_scale=self._unit == "B",
                    leave=False,
                    delay=1.0,
                    dynamic_ncols=True,
                )
            self._bar.total = total
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._spoken >= self._every:
            self._spoken = time.monotonic()
            counts = (
                f"{done / max(total, 1):.0%}" if self._unit == "B" else f"{done:,} {self._of} {total:,} {self._unit}s"
            )
            rate = done / (time.monotonic() - self._started)
            left = f", {rate:,.0f}/s, {_duration((total - done) / rate)} left" if rate and self._unit != "B" else ""
            self._say(f"{self._what} {counts}{left}")


def _duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.2 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def run_interruptibly(
    pool: ThreadPoolExecutor,
    threads: int,
    work: Callable[[Item], int],
    items: Iterable[Item],
    stop: Callable[[], None] = lambda: None,
) -> Iterator[int]:
    """Do the work in threads with a bounded queue; yields how many images each piece was, as pieces end.

    Where the caller is interrupted, what is queued is cancelled and what runs is waited for, a fraction of a second.
    The caller regains control at least every 0.2 s, by a yield of 0, so that signals are served.

    Args:
        stop: asks work that takes longer to end, called at the end and at an interrupt.
    """
    waiting: set[Future[int]] = set()
    left = iter(items)
    try:
        more = True
        while more or waiting:
            while more and len(waiting) < _AHEAD * threads:
                item = next(left, None)
                if item is None:
                    more = False
                else:
                    waiting.add(pool.submit(work, item))
            ended, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            yield sum(future.result() for future in ended)
    finally:
        stop()
        for future in waiting:
            future.cancel()
        wait(waiting)


def interruptibly(work: Callable[[], Item]) -> Item:
    """What `work` returns; it runs in a thread that is left behind where the caller is interrupted.

    For long calls into a library, which serve no signal, as training a tokenizer.
    """
    done: Future[Item] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not done.done():
        wait([done], timeout=_POLL_SECONDS)
    return done.result()
