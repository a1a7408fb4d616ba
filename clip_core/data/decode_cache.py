"""Decoded images on disk, memory-mapped, so that each is decoded once and not once a run.

    CACHE/KEY.npy     uint8 (N, S, S, 3)
    CACHE/KEY.json    written last: the key, the shape, the rows that could not be decoded; without it there is no entry
    CACHE/KEY.part.npy, KEY.part.json    what an interrupted run decoded, for the next one to continue

The key is a hash of every image's path, size and time of change, the preprocessing and the decoder. Files are written
under another name and renamed, so any number of processes may read and write. A damaged entry is made again; the least
recently used entries are removed when all together are too large.
N images, S the side.
"""

import fcntl
import hashlib
import io
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
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from clip_core.data.image_files import image_facts
from clip_core.files import DAMAGED_ARRAY, abandoned, flush_directory, read_json, remove_unfinished, write_json
from clip_core.network import Preprocessing

Pixels = NDArray[np.uint8]

_FORMAT = 2
_PART = ".part"
_FLUSHED_AT = 32_000_000  # bytes written between two flushes to the disk
_SPARE = 500_000_000  # bytes that stay free on the disk
_STALE = 86_400.0  # seconds after which an unfinished file belongs to nobody, where that cannot be seen at once
_RECENT = 60.0  # seconds in which an entry that was used is not removed: the other set of a run that starts


def identity(paths: Sequence[Path], preprocessing: Preprocessing, decoder: str) -> str:
    """The key of some decoded images; a missing image counts as such."""
    key = hashlib.sha256(f"{_FORMAT}\n{decoder}\n{preprocessing.model_dump_json()}\n".encode())
    for path in paths:
        try:
            facts = "{} {}".format(*image_facts(path))
        except (OSError, ValueError):
            facts = "-"
        key.update(os.fsencode(path) + f"\0{facts}\n".encode())
    return key.hexdigest()[:40]


class DecodeCache:
    """The entries of one folder, together at most `budget` bytes (those used within a minute stay)."""

    def __init__(self, folder: Path, budget: float) -> None:
        self.folder, self.budget = folder, budget

    def open(self, key: str, shape: tuple[int, ...]) -> tuple[Pixels, list[int]] | None:
        """The pixels, read-only, and the rows that could not be decoded; None without a valid entry."""
        record = _read_record(self.record(key), key, shape)
        pixels = _map(self.pixels(key), shape) if record else None
        if record is None or pixels is None:
            return None
        with suppress(OSError):
            os.utime(self.record(key))  # used now
        return pixels, record["failed"]

    def create(self, key: str, shape: tuple[int, ...]) -> "PendingPixels | None":
        """An entry to be filled; None where the folder is not writable or the disk has no room."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.remove_old(keep=key, room=_size(shape))
            if shutil.disk_usage(self.folder).free < _size(shape) + _SPARE:
                return None
            return PendingPixels(self, key, shape)
        except OSError:
            return None

    def pixels(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def record(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def remove_old(self, keep: str, room: int = 0) -> None:
        """Remove the least recently used entries until the rest and `room` bytes more are within the budget."""
        with suppress(OSError):
            remove_unfinished(self.folder)
            for unfinished in self.folder.glob("[!.]*.tmp"):
                if abandoned(unfinished) or time.time() - unfinished.stat().st_mtime > _STALE:
                    unfinished.unlink(missing_ok=True)
            entries = []
            for pixels in self.folder.glob("*.npy"):
                if pixels.stem.removesuffix(_PART) != keep:
                    record = self.record(pixels.stem)
                    used = (record if record.exists() else pixels).stat().st_mtime
                    entries.append((used, pixels.stat().st_size, pixels.stem))
            total = room + sum(size for _, size, _ in entries)
            for used, size, stem in sorted(entries):
                if total <= self.budget or time.time() - used < _RECENT:
                    break
                self.record(stem).unlink(missing_ok=True)
                self.pixels(stem).unlink(missing_ok=True)
                total -= size


class PendingPixels:
    """An entry that is being filled, in any order and from any thread. It starts with what an interrupted run kept.

    `done`: rows that were decoded already; `failed`: those among them that could not be.
    """

    def __init__(self, cache: DecodeCache, key: str, shape: tuple[int, ...]) -> None:
        self._cache, self._key, self._shape = cache, key, shape
        self._beside = cache.folder / f"{key}.{uuid.uuid4().hex}.tmp"
        self._lock = threading.Lock()
        self._unflushed = 0
        self.done = np.zeros(shape[0], dtype=bool)
        self.failed: list[int] = []
        self._continue_part()
        self._file: BinaryIO = self._beside.open("r+b" if self.done.any() else "wb")
        with suppress(OSError):  # a file system without locks; else until the process ends, however it does
            fcntl.flock(self._file, fcntl.LOCK_EX)
        if not self.done.any():
            self._file.write(_header(shape))
        self._start = len(_header(shape))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing unfinished behind."""
        with suppress(OSError):  # a full disk was reported by `put`
            self._file.close()
        self._beside.unlink(missing_ok=True)

    def put(self, row: int, pixels: Pixels) -> None:
        """Write some images (n, S, S, 3) from a row on.

        Raises:
            OSError: if the disk is full.
        """
        with self._lock:
            self._file.seek(self._start + row * _size(self._shape[1:]))
            self._file.write(np.ascontiguousarray(pixels).data)
            self.done[row : row + len(pixels)] = True
            self._unflushed += pixels.nbytes
            flush = self._unflushed > _FLUSHED_AT
            if flush:
                self._unflushed = 0
                self._file.flush()
        if flush:  # now and then, so that little is left to do where the process is interrupted
            os.fsync(self._file.fileno())

    def finish(self, failed: Sequence[int]) -> Pixels:
        """Complete the entry and open it.

        Raises:
            OSError: if the disk is full, or the file was removed.
        """
        self._close()
        self._beside.replace(self._cache.pixels(self._key))
        self._write_record(self._cache.record(self._key), failed)
        for part in (self._cache.record(self._key + _PART), self._cache.pixels(self._key + _PART)):
            part.unlink(missing_ok=True)  # of a process that was killed while it kept what it had
        self._cache.remove_old(keep=self._key, room=_size(self._shape))
        opened = self._cache.open(self._key, self._shape)
        if opened is None:
            raise OSError(f"{self._cache.folder} does not keep what is written to it")
        return opened[0]

    def suspend(self, failed: Sequence[int]) -> None:
        """Keep what was decoded, for the next process that creates this entry.

        Raises:
            OSError: if it cannot be written.
        """
        with self._lock:
            self._close()
            part = self._key + _PART
            self._cache.record(part).unlink(missing_ok=True)
            self._beside.replace(self._cache.pixels(part))
            self._write_record(self._cache.record(part), failed, done=np.packbits(self.done).tobytes().hex())

    def _continue_part(self) -> None:
        """Take over what an interrupted run kept; only one process gets it."""
        part = self._key + _PART
        record = _read_record(self._cache.record(part), self._key, self._shape)
        if record is None:
            return
        try:
            self._cache.record(part).unlink()
            self._cache.pixels(part).replace(self._beside)
            done = np.unpackbits(np.frombuffer(bytes.fromhex(record["done"]), np.uint8), count=self._shape[0])
            if self._beside.stat().st_size != len(_header(self._shape)) + _size(self._shape):
                return
        except (OSError, KeyError, TypeError, ValueError):
            return
        self.done, self.failed = done.astype(bool), record["failed"]

    def _close(self) -> None:
        self._file.truncate(self._start + _size(self._shape))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_record(self, path: Path, failed: Sequence[int], **more: str) -> None:
        values = {"key": self._key, "shape": list(self._shape), "failed": sorted(failed), **more}
        write_json(path, values | {"sha256": _digest(values)})
        flush_directory(self._cache.folder)


def _read_record(path: Path, key: str, shape: tuple[int, ...]) -> dict[str, Any] | None:
    values = read_json(path)
    if values is None or values.pop("sha256", None) != _digest(values):
        return None
    return values if (values.get("key"), values.get("shape")) == (key, list(shape)) else None


def _map(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """The pixels of a whole .npy file, read-only; None where it is missing, cut or of another shape."""
    if not _size(shape):
        return np.zeros(shape, dtype=np.uint8)
    try:
        if path.stat().st_size != len(_header(shape)) + _size(shape):
            return None
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED_ARRAY:
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _header(shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file of uint8."""
    buffer = io.BytesIO()
    write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _size(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= int(side)
    return total
