"""SIGINT, SIGTERM and SIGHUP during training."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self


class Signals:
    """SIGINT and SIGTERM raise KeyboardInterrupt during the setup.

    Once `deferring` is set, the first of them is only noted in `received`, so that the step ends and a checkpoint is
    written; a second one raises. SIGHUP, sent when the terminal closes, is ignored: training goes on.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.of_others: int | None = None  # received by another process of the run, which stops for it too
        self.deferring = False
        self._asked = False
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def interrupt(self) -> None:
        """Interrupt the main thread from another one, without a signal from outside."""
        self._asked = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGTERM:
            self._asked = False
            raise KeyboardInterrupt
        if self.received is not None or not self.deferring:
            self.received = number
            raise KeyboardInterrupt
        self.received = number

    @property
    def exit_code(self) -> int:
        """As a shell reports it: 128 + the signal's number."""
        number = self.received or self.of_others
        return 128 + number if number else 0
