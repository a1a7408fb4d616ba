"""A lock file that the kernel releases when its process ends."""

import fcntl
import os
from pathlib import Path

from clip_core.errors import ClipError
from clip_core.files import open_regular


class Lock:
    """Held from construction until `close`.

    Raises:
        ClipError: `busy`, if another process holds it.
    """

    def __init__(self, path: Path, busy: ClipError) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise busy from None

    def close(self) -> None:
        """Release the lock; a second call has no effect."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # also where a child that starts has the file open yet
            os.close(self._descriptor)
            self._descriptor = -1


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock."""
    try:
        with open_regular(path) as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
