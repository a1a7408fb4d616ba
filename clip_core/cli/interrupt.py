"""Ctrl-C while a command starts. Only the standard library's smallest modules are imported here."""

import os
import signal
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def exit_on_interrupt(command: str) -> "Iterator[None]":
    """Let SIGINT end the process at once with one line and exit code 130.

    An exception would not do: raised inside an import it ends in a traceback of whatever was being imported, or is
    swallowed by a library that tries another import instead. What has something to clean up installs its own handler.
    """

    def leave(number: int, frame: "FrameType | None") -> None:
        os.write(2, f"{command}: interrupted.\n".encode())
        os._exit(128 + number)

    try:
        before = signal.signal(signal.SIGINT, leave)
    except ValueError:  # not the main thread, which alone receives signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
