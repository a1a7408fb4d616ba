"""Where an export goes: written beside, renamed into place when it is proven; nothing of the user's is replaced."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_core.errors import RunError, UsageError
from clip_core.files import flush_directory


def check_place(out: Path, *, what: str, run: str, made_from: Callable[[Path], str | None], force: bool) -> None:
    """Make sure that nothing but an export of the same kind and run is replaced.

    Args:
        what: the export in words, "a bundle".
        run: the run that is exported.
        made_from: the run that the export in a folder was made from, or None where the folder holds something else.
        force: replace an export that was made from another run.
    Raises:
        UsageError: if the place is taken.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise UsageError(f"--out is {out}, which is not a folder; choose another place.")
    if not any(out.iterdir()):
        return
    there = made_from(out)
    if there is None:
        raise UsageError(f"--out is {out}, which holds something else than {what}; choose another.")
    if there != run and not force:
        raise UsageError(f"{out} holds {what} of the run {there!r}; replace it with --force.")


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, gone when the block ends, however it ends."""
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"the export cannot be written to {out.parent}: {error.strerror}.") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, out: Path) -> None:
    """Let the finished folder become `out`; what was there stays until then, and comes back if that fails."""
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    flush_directory(out.parent)
    shutil.rmtree(old, ignore_errors=True)
