"""One shard as a file that is read from front to back, wherever it is: a local file, https, or fsspec's protocols.

A failed connection is opened again where it broke, after a wait that doubles. http and https are read by Python's own
library, as one request is then one stream of bytes from an offset on, and a server that ignores offsets says so in its
first line; fsspec would ask for a block at a time, or read such a shard whole into memory.
"""

import hashlib
import http.client
import io
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from clip_core.errors import DataError
from clip_core.text import printable

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before each further try
LOCAL = "local"  # the first word of a local shard's tag
_TIMEOUT = 60.0  # seconds without a byte
_SAMPLE = 65536  # bytes at the beginning, the middle and the end of a local shard, which its tag is of
_SKIPPED = 1 << 20  # bytes; a gap up to this is read and thrown away, as asking again takes longer
_BLOCK = 1 << 23  # bytes that fsspec asks for at a time
_PACKAGES = {  # of protocols, which fsspec knows and needs a package for
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
    "hf": "huggingface-hub", "oci": "ocifs", "oss": "ossfs", "sftp": "paramiko", "ssh": "paramiko",
}  # fmt: skip


class StoppedError(Exception):
    """The reader was closed while it waited."""


class ShardError(DataError):
    """A shard that cannot be read: `why`, in a few words, and the byte `place` where it is damaged, where known."""

    def __init__(self, url: str, why: str, tries: int = 1, place: int | None = None) -> None:
        self.url, self.why, self.tries, self.place = url, printable(why, 200), tries, place
        tried = f", tried {tries} times" if tries > 1 else ""
        super().__init__(
            f"the shard {printable(url, 300)} cannot be read ({self.why}{tried}); make it available (a run "
            "continues with --resume), or correct the path."
        )

    def __reduce__(self) -> tuple[type["ShardError"], tuple[str, str, int, int | None]]:
        return type(self), (self.url, self.why, self.tries, self.place)  # of another process


class Opened(NamedTuple):
    """A shard from an offset on.  size: None where the server does not say; tag: changes with the content."""

    handle: Any
    size: int | None
    tag: str
    at_offset: bool  # whether the source can begin there, or everything before has to be read too


class LocalTag(NamedTuple):
    """Of a local shard: a hash of some of its content, when it was last written, ns, and a hash of where it is.

    A part that is not hashed may change without changing the size; then the time differs. It says nothing where the
    shard was copied to another place or machine.
    """

    content: str
    written: int
    place: str

    @classmethod
    def parse(cls, tag: str) -> "LocalTag | None":
        """None for that of a remote shard."""
        kind, *parts = tag.split(" ")
        return cls(parts[0], int(parts[1]), parts[2]) if kind == LOCAL and len(parts) == 3 else None


def _quiet(line: str) -> None:
    pass


class Source(io.RawIOBase):
    """A shard from `start` on; seeking forwards reads on or opens again, whichever is faster.

    Attributes:
        size, tag, at_offset: as of `Opened`.
    """

    def __init__(
        self,
        url: str,
        start: int = 0,
        *,
        say: Callable[[str], None] = _quiet,
        closing: threading.Event | None = None,
        tries: int | None = None,
    ) -> None:
        """
        Args:
            say: takes a sentence about a failed try, or about a source that has to be read from its beginning.
            closing: ends a wait.
            tries: before it fails; 1 for a local file.
        Raises:
            DataError: if it cannot be opened.
        """
        super().__init__()
        self.url, self._say, self._closing = url, say, closing or threading.Event()
        self._tries = tries or (len(WAITS) + 1 if is_remote(url) else 1)
        self._failed, self._position = 0, start
        self._handle: Any = None
        self.size: int | None = None
        self.tag, self.at_offset = "", True
        while self._handle is None:
            self._attempt(self._open)

    def readinto(self, buffer: Any) -> int:
        """
        Raises:
            DataError: if it cannot be read on.
        """
        while True:
            if self.size is not None and self._position >= self.size:
                return 0
            count: int | None = self._attempt(lambda: self._read(buffer))
            if count is not None:
                self._position += count
                self._failed = 0
                return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            offset += self._position if whence == io.SEEK_CUR else self.size or 0
        gap = offset - self._position
        if 0 < gap <= (_SKIPPED if self.at_offset else offset):
            self._discard(gap)
        elif gap:
            self._position = offset
            self._leave()
        return offset

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._leave()
        super().close()

    # ------------------------------------------------------------ inside

    def _read(self, buffer: Any) -> int:
        if self._handle is None:
            self._open()
        count = int(self._handle.readinto(buffer) or 0)
        if not count and self.size is not None:
            raise OSError(f"it ends after {self._position:,} of {self.size:,} bytes")
        return count

    def _open(self) -> None:
        opened = _open(self.url, self._position)
        if self.tag and (opened.size, opened.tag) != (self.size, self.tag):
            opened.handle.close()
            raise ShardError(self.url, "it has changed while it was read")
        self._handle, self.size, self.tag, self.at_offset = opened
        if self._position and not self.at_offset:
            self._say(
                f"{printable(self.url)} cannot be read from an offset on: its first {self._position:,} bytes are read "
                "and skipped"
            )
            end, self._position = self._position, 0
            try:
                while self._position < end:
                    skipped = self._handle.read(min(end - self._position, _SKIPPED))
                    if not skipped:
                        raise OSError(f"it ends after {self._position:,} bytes")
                    self._position += len(skipped)
            finally:
                self._position = end

    def _attempt(self, action: Callable[[], Any]) -> Any:
        """What the action returns; None after a failure and a wait, until it has failed too often."""
        try:
            if self._closing.is_set():
                raise StoppedError
            return action()
        except (DataError, StoppedError, MemoryError):
            raise
        except Exception as error:  # fsspec's implementations raise what their libraries raise
            why = _reason(error)
        self._leave()
        self._failed += 1
        if self._failed >= self._tries:
            raise ShardError(self.url, why, self._failed, self._position or None)
        wait = WAITS[min(self._failed, len(WAITS)) - 1]
        self._say(f"{printable(self.url)}: {why}; trying again in {wait:g} s ({self._failed} of {self._tries - 1})")
        if self._closing.wait(wait):
            raise StoppedError
        return None

    def _discard(self, count: int) -> None:
        while count > 0 and (read := self.read(min(count, _SKIPPED))):
            count -= len(read)

    def _leave(self) -> None:
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            handle.close()


def open_source(url: str, start: int = 0, **how: Any) -> Source:
    """As `Source`."""
    return Source(url, start, **how)


def is_remote(url: str) -> bool:
    """Whether it is read through a protocol."""
    return "://" in url and not url.startswith("file://")


def read_range(url: str, start: int, size: int) -> bytes:
    """Some bytes of a shard, asked for alone.

    Raises:
        ShardError: if it cannot be read, or its server can only begin at its beginning.
    """
    try:
        if url.startswith(("http://", "https://")):
            opened = _http(url, start, size)
            with opened.handle as handle:
                if start and not opened.at_offset:
                    raise OSError("its server cannot read from an offset on")
                return bytes(handle.read(size))
        if is_remote(url):
            system, path = _system(url)
            return bytes(system.cat_file(path, start=start, end=start + size))
        with Path(url.removeprefix("file://")).open("rb") as handle:
            handle.seek(start)
            return handle.read(size)
    except DataError:
        raise
    except Exception as error:  # as above
        raise ShardError(url, _reason(error), place=start) from None


def remote_glob(pattern: str) -> list[str]:
    """What a remote pattern with wildcards matches, sorted, as URLs.

    Raises:
        DataError: if its protocol cannot be listed.
    """
    scheme = pattern.partition("://")[0]
    if scheme in ("http", "https"):
        raise DataError(f"{printable(pattern)}: a web server lists no files; give a brace pattern, {{000..012}}.tar.")
    system, path = _system(pattern)
    try:
        return sorted(system.unstrip_protocol(found) for found in system.glob(path))
    except Exception as error:  # as above
        raise DataError(f"{printable(pattern)} cannot be listed ({_reason(error)}); name the shards.") from None


def check_protocol(url: str) -> None:
    """Refuse a URL that nothing installed can read, before anything is written.

    Raises:
        DataError: naming the package.
    """
    if is_remote(url) and not url.startswith(("http://", "https://")):
        _system(url)


# ---------------------------------------------------------------- the three kinds


def _open(url: str, start: int) -> Opened:
    if not is_remote(url):
        return _local(Path(url.removeprefix("file://")), start)
    if url.startswith(("http://", "https://")):
        return _http(url, start)
    return _fsspec(url, start)


def _local(path: Path, start: int) -> Opened:
    if path.exists() and not path.is_file():
        raise OSError("it is not a file")
    handle = io.FileIO(path)
    facts = os.fstat(handle.fileno())
    size = facts.st_size
    content = hashlib.blake2b(digest_size=12)
    for offset in (0, max(size // 2 - _SAMPLE // 2, 0), max(size - _SAMPLE, 0)):
        handle.seek(offset)
        content.update(handle.read(_SAMPLE))
    handle.seek(start)
    place = hashlib.blake2b(f"{socket.gethostname()} {path.absolute()}".encode("utf-8", "replace"), digest_size=6)
    local = LocalTag(content.hexdigest(), facts.st_mtime_ns, place.hexdigest())
    return Opened(handle, size, f"{LOCAL} {' '.join(map(str, local))}", True)


def _http(url: str, start: int, size: int | None = None) -> Opened:
    end = "" if size is None else start + size - 1
    headers = {"Range": f"bytes={start}-{end}", "Accept-Encoding": "identity", "User-Agent": "clip-tui"}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        end = error.headers.get("Content-Range", "").rpartition("*/")[2]
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and end.isdecimal() and start == int(end):
            return Opened(io.BytesIO(), start, _tag(error.headers), True)  # at its end
        raise
    partial, size = response.status == http.client.PARTIAL_CONTENT, None
    total = response.headers.get("Content-Range", "").rpartition("/")[2] if partial else None
    total = total or response.headers.get("Content-Length", "")
    if total.isdecimal():
        size = int(total)
    return Opened(response, size, _tag(response.headers), partial)


def _fsspec(url: str, start: int) -> Opened:
    system, path = _system(url)
    facts = system.info(path)
    handle = system.open(path, "rb", block_size=_BLOCK, cache_type="readahead")
    at_offset = handle.seekable()
    if at_offset:
        handle.seek(start)
    return Opened(handle, facts.get("size"), _tag(facts), at_offset)


def _tag(facts: Any) -> str:
    """What a server says of the version of a file: its ETag, else the time of its last change."""
    for name in ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "mtime", "created"):
        value = facts.get(name)
        if value:
            return f"{name.lower().replace('-', '')} {value}"
    return ""


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    scheme = url.partition("://")[0]
    package = _PACKAGES.get(scheme)
    try:
        import fsspec  # optional, and not needed for local shards and web servers

        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        missing = " ".join(filter(None, ("fsspec" if "'fsspec" in str(error) else None, package)))
        raise DataError(
            f"{printable(url, 200)} needs a package that is not installed: pip install {missing or 'fsspec'}."
        ) from None
    except ValueError as error:
        raise DataError(f"{printable(url, 200)} cannot be opened ({printable(str(error), 200)}).") from None
    return system, path


def _reason(error: BaseException) -> str:
    """An error of a connection in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {printable(str(error.reason), 80)}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return _reason(error.reason)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return printable(error.strerror, 120)
    return printable(str(error), 120) or type(error).__name__
