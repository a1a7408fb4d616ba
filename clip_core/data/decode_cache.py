"""Decoded images on disk, memory-mapped, so that each is decoded once and not once a run.

    CACHE/KEY.pixels    uint8 (N, S, S, 3), then a JSON footer, its sha256, its length and a mark

The key is made of every image's path, size and time of its last change, the preprocessing and the decoder: another
image, size or decoder is another file. A file is written beside and renamed, so that any number of processes may read
and write; a damaged one is made again; the longest unused ones go first when all together are too large.
N images, S the side.
"""

import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from clip_core.data.image_files import image_facts
from clip_core.files import flush_directory
from clip_core.network import Preprocessing

Pixels = NDArray[np.uint8]

_FORMAT = 1
_MARK = b"CLIPPIX\n"
_LENGTH = 16  # digits of the footer's length
_DIGEST = 64
_SUFFIX = ".pixels"
_SPARE = 500_000_000  # bytes that stay free on the disk
_STALE = 86_400.0  # seconds after which an unfinished file belongs to nobody
_RECENT = 60.0  # seconds for which a file that was used is not removed: the other half of a run that starts


def identity(paths: Sequence[Path], preprocessing: Preprocessing, decoder: str) -> str:
    """The key of some decoded images; an image that is not there counts as such."""
    key = hashlib.sha256(f"{_FORMAT}\n{decoder}\n{preprocessing.model_dump_json()}\n".encode())
    for path in paths:
        try:
            facts = "{} {}".format(*image_facts(path))
        except (OSError, ValueError):
            facts = "-"
        key.update(os.fsencode(path) + f"\0{facts}\n".encode())
    return key.hexdigest()[:40]


class DecodeCache:
    """The files of one folder, together at most `budget` bytes (those in use this minute stay)."""

    def __init__(self, folder: Path, budget: float) -> None:
        self.folder, self.budget = folder, budget

    def open(self, key: str, shape: tuple[int, ...]) -> tuple[Pixels, list[int]] | None:
        """The pixels, read-only, and the rows that could not be decoded; None if there is no whole file of this key."""
        path = self._path(key)
        try:
            footer = _read_footer(path)
            pixels = np.memmap(path, dtype=np.uint8, mode="r", shape=shape) if _product(shape) else _none(shape)
        except (OSError, ValueError):
            return None
        if footer.get("key") != key or footer.get("shape") != list(shape) or not isinstance(footer.get("failed"), list):
            return None
        with suppress(OSError):
            os.utime(path)  # used now
        return pixels, [int(row) for row in footer["failed"]]

    def create(self, key: str, shape: tuple[int, ...]) -> "PendingPixels | None":
        """A file to be filled; None where the folder cannot be written or the disk has no room."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._forget(keep=key, room=_product(shape))
            if shutil.disk_usage(self.folder).free < _product(shape) + _SPARE:
                return None
            return PendingPixels(self, key, shape)
        except OSError:
            return None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _forget(self, keep: str, room: int = 0) -> None:
        """Remove the longest unused files until the rest and `room` bytes more are within the budget."""
        with suppress(OSError):
            for unfinished in self.folder.glob("*.tmp"):
                if time.time() - unfinished.stat().st_mtime > _STALE:
                    unfinished.unlink(missing_ok=True)
            files = [(path, path.stat()) for path in self.folder.glob(f"*{_SUFFIX}") if path != self._path(keep)]
            total = room + sum(facts.st_size for _, facts in files)
            for path, facts in sorted(files, key=lambda file: file[1].st_mtime):
                if total <= self.budget or time.time() - facts.st_mtime < _RECENT:
                    break
                path.unlink(missing_ok=True)
                total -= facts.st_size


class PendingPixels:
    """A cache file that is being filled, in any order and from any thread."""

    def __init__(self, cache: DecodeCache, key: str, shape: tuple[int, ...]) -> None:
        self._cache, self._key, self._shape = cache, key, shape
        self._beside = cache.folder / f"{key}.{uuid.uuid4().hex}.tmp"
        self._lock = threading.Lock()
        self._file: BinaryIO = self._beside.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing unfinished behind."""
        with suppress(OSError):  # a full disk is told by what was written, not by the closing
            self._file.close()
        self._beside.unlink(missing_ok=True)

    def put(self, row: int, pixels: Pixels) -> None:
        """Write some images (n, S, S, 3) from a row on.

        Raises:
            OSError: if the disk is full.
        """
        with self._lock:
            self._file.seek(row * _product(self._shape[1:]))
            self._file.write(np.ascontiguousarray(pixels).data)

    def finish(self, failed: Sequence[int]) -> Pixels:
        """Make the file whole and open it.

        Raises:
            OSError: if the disk is full, or the file is not there any more.
        """
        footer = json.dumps({"key": self._key, "shape": list(self._shape), "failed": sorted(failed)}).encode()
        self._file.seek(_product(self._shape))
        digest = hashlib.sha256(footer).hexdigest().encode()
        self._file.write(footer + digest + f"{len(footer):0{_LENGTH}d}".encode() + _MARK)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._beside.replace(self._cache._path(self._key))
        flush_directory(self._cache.folder)
        self._cache._forget(keep=self._key, room=_product(self._shape))
        opened = self._cache.open(self._key, self._shape)
        if opened is None:
            raise OSError(f"{self._cache.folder} does not keep what is written to it")
        return opened[0]


def _read_footer(path: Path) -> dict[str, Any]:
    """What stands after the pixels.

    Raises:
        ValueError: if the file is not whole.
    """
    tail = _DIGEST + _LENGTH + len(_MARK)
    with path.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(size - tail, 0))
        end = handle.read(tail)
        if not end.endswith(_MARK) or len(end) != tail:
            raise ValueError("no mark at the end")
        length = int(end[_DIGEST : _DIGEST + _LENGTH])
        start = size - tail - length
        handle.seek(max(start, 0))
        content = handle.read(length)
    if hashlib.sha256(content).hexdigest().encode() != end[:_DIGEST]:
        raise ValueError("damaged footer")
    footer = json.loads(content)
    if not isinstance(footer, dict) or start != _product(footer.get("shape", ())):
        raise ValueError("not as large as its images")
    return footer


def _product(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= int(side)
    return total


def _none(shape: tuple[int, ...]) -> Pixels:
    return np.zeros(shape, dtype=np.uint8)
