"""A lock file that the kernel releases when its process ends."""

import fcntl
from pathlib import Path

from clip_core.errors import ClipError


class Lock:
    """Held from construction until `close`.

    Raises:
        ClipError: `busy`, if another process holds it.
    """

    def __init__(self, path: Path, busy: ClipError) -> None:
        self._handle = path.open("a")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._handle.close()
            raise busy from None

    def close(self) -> None:
        self._handle.close()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock."""
    try:
        with path.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
