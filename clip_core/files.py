"""Files that are whole or absent: write beside, flush to disk, rename, flush the directory."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

# What NumPy raises on a damaged .npy file, whose header it parses as Python.
DAMAGED_ARRAY = (OSError, ValueError, SyntaxError, TokenError, EOFError, TypeError)
_SETTLED = 60.0  # seconds after which a folder that is not locked will not be
LARGEST_TEXT = 2**28  # bytes of a JSON file; the largest tokenizers of published models have 35 million


def flush_directory(path: Path) -> None:
    """Make renames inside `path` survive a power cut (a no-op where directories cannot be opened)."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush_file(path: Path) -> None:
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it becomes `path` atomically."""
    remove_unfinished(path.parent, path.name)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        flush_file(beside)
        try:
            beside.replace(path)
        except OSError as error:  # would name the temporary file
            raise OSError(error.errno, error.strerror, str(path)) from None
        flush_directory(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Remove the files that `replacing` left in `folder` when its process was killed.

    Args:
        name: of the file that was being replaced; None for every one.
    """
    left = re.compile(r"\.(?P<name>.+)\.(?P<pid>[0-9]+)\.tmp", re.DOTALL)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = left.fullmatch(entry.name)
            if found is None or (name is not None and found["name"] != name) or process_lives(int(found["pid"])):
                continue
            if entry.is_file(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)


@contextmanager
def scratch_folder(what: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder, removed when the block ends; those of processes that were killed are removed first.

    A living process holds a lock on its folder, so that an id which another process has by now does not matter.

    Args:
        what: it is for, in its name.
        parent: where it is made; None for the system's temporary folder.
    """
    parent, prefix = parent or Path(tempfile.gettempdir()), f"clip-{what}-"
    with suppress(OSError):
        for left in parent.glob(f"{prefix}????????"):
            facts = left.lstat()
            ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
            if ours and time.time() - facts.st_mtime > _SETTLED and abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def abandoned(path: Path) -> bool:
    """Whether nobody holds the lock on a file or folder that its process locks while it lives; False if unknown."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def replaced(folder: Path) -> Path:
    """Where an old folder waits, complete, while a new one takes its place on a file system that cannot swap two."""
    return folder.with_name(f".{folder.name}.old")


def process_lives(pid: int) -> bool:
    """Whether a process with this id exists on this host; a zombie does not count."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] != "Z"


def write_text(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON; NaN and infinity, which JSON has not, become null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not UTF-8: only JSON's own escapes can carry it
        text = json.dumps(finite(value), indent=2)
    write_text(path, text + "\n")


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, without waiting for the writer of a FIFO.

    Raises:
        OSError: if it is not a regular file, or cannot be opened.
    """
    return os.fdopen(_regular(path, os.O_RDONLY), "rb")


def append_regular(path: Path) -> BinaryIO:
    """Open a file for appending, made where there is none, without waiting for the reader of a FIFO.

    Raises:
        OSError: as `open_regular`.
    """
    return os.fdopen(_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def _regular(path: Path, flags: int) -> int:
    not_regular = OSError(errno.EINVAL, "it is not a regular file", str(path))
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise (not_regular if error.errno == errno.ENXIO else error) from None  # a FIFO that nobody reads, a socket
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_regular
    return descriptor


def kind_of(path: Path) -> str:
    """What is in a regular file's place: `a folder`, `a FIFO`."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    try:
        return kinds.get(stat.S_IFMT(path.stat().st_mode), "a device")
    except OSError:
        return "a broken link"


def read_regular(path: Path, largest: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: if it is not one, cannot be opened, or is larger than `largest` bytes.
    """
    with open_regular(path) as handle:
        content = handle.read(largest + 1)
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes", str(path))
    return content


def load_json(path: Path) -> Any:
    """What a regular file holds as JSON, with or without a byte order mark.

    Raises:
        OSError: as `read_regular`.
        ValueError: if it is not JSON, or is nested too deeply to be read.
    """
    return parse_json(read_regular(path).decode("utf-8-sig"))


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, whose RecursionError on deep nesting is a ValueError too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object that a regular file holds, or None where there is none."""
    try:
        values = load_json(path)
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity replaced by None, so that any JSON reader takes it."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def cache_folder() -> Path:
    """Where what can be made again is kept for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip-tui"


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
