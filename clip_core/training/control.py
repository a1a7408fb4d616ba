"""What may interrupt a step loop: signals, and requests left in control.json."""

import signal
from types import FrameType, TracebackType
from typing import Self


class Signals:
    """SIGINT and SIGTERM set a flag, so that the step ends and a checkpoint is written; a second one interrupts.

    SIGHUP, sent when the terminal closes, is ignored: training goes on.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._flag)
        self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _flag(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    @property
    def exit_code(self) -> int:
        """As a shell reports it: 128 + the signal's number."""
        return 128 + self.received if self.received else 0
