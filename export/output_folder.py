"""The folder of an export: written beside it, then swapped into place; nothing else of the user's is replaced.

.NAME.PID.tmp   the export that a process writes
.NAME.old       the export that is being replaced, where the file system cannot swap two folders
"""

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_core.errors import RunError, UsageError
from clip_core.files import flush_directory, replaced

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_output(out: Path, *, what: str, run: str, made_from: Callable[[Path], str | None], force: bool) -> None:
    """Make sure that nothing but an export of the same kind and run is replaced.

    Args:
        what: the export in words, "a bundle".
        run: the run that is exported.
        made_from: the run that the export in a folder was made from, or None where the folder holds something else.
        force: replace an export that was made from another run.
    Raises:
        UsageError: if `out` holds something else.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise UsageError(f"--out is {out}, which is not a folder; choose another.")
    if not any(out.iterdir()):
        return
    there = made_from(out)
    if there is None:
        raise UsageError(f"--out is {out}, which holds something else than {what}; choose another.")
    if there != run and not force:
        raise UsageError(f"{out} holds {what} of the run {there!r}; replace it with --force.")


@contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, removed when the block ends."""
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:  # from the start: a signal may raise as soon as the folder is there
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"the export cannot be written to {out.parent}: {error.strerror}.") from None
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, out: Path) -> None:
    """Let the finished folder become `out`. At every moment `out` is the old export or the new one.

    Where the file system cannot swap two folders, `out` is absent between two renames: readers of a bundle take the old
    one meanwhile, and `recover` undoes the first.
    """
    if not out.exists():
        folder.rename(out)
    elif not _swap(folder, out):
        _replace(folder, out)
    flush_directory(out.parent)


def recover(out: Path) -> None:
    """Clean up after exports to `out` that were killed; the caller holds the lock."""
    before = replaced(out)
    if before.is_dir() and not out.exists():
        before.rename(out)
        flush_directory(out.parent)
    shutil.rmtree(before, ignore_errors=True)
    left = re.compile(re.escape(f".{out.name}.") + r"\d+\.tmp")
    folders = list(out.parent.iterdir()) if out.parent.is_dir() else []
    for folder in folders:
        if left.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two folders atomically; False where that is unsupported."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _replace(folder: Path, out: Path) -> None:
    before = replaced(out)
    out.rename(before)
    try:
        folder.rename(out)
    except OSError:
        before.rename(out)
        raise
    shutil.rmtree(before, ignore_errors=True)
