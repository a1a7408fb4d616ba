"""Features of frozen encoders on disk, by the content they were computed from.

Shapes: N rows asked for, K stored vectors, F the shape of one vector.

A cache is a folder with two files that only grow: `keys.bin` (16 bytes a row) and `features.bin` (float32, F a row).
A row counts once its key is written, so that an interrupted run keeps what it computed, and any number of processes may
read while others append.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_core.data.progress import Progress, no_progress
from clip_core.files import cache_folder
from clip_core.scoring import FloatArray

IntArray = NDArray[np.int64]

KEY_BYTES = 16
_CHUNK = 32  # inputs that are encoded and stored at a time: what an interrupt loses


def content_key(content: bytes | NDArray[np.generic]) -> bytes:
    """The key of an input: a hash of the pixels or token ids that the encoder sees."""
    data = content if isinstance(content, bytes) else np.ascontiguousarray(content).data
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


class FeatureCache:
    """The features of one encoder.

    Args:
        identity: of the encoder and of everything else that changes its features.
        shape: F, of one vector.
        folder: where it is kept; None for the user's cache. Where that cannot be written, features stay in memory.
    """

    def __init__(self, identity: str, shape: tuple[int, ...], folder: Path | None = None) -> None:
        name = hashlib.sha256(f"{identity} {shape}".encode()).hexdigest()[:32]
        self.folder = folder or cache_folder() / "features" / name
        self.shape = shape
        self._bytes = 4 * int(np.prod(shape))
        self._rows: dict[bytes, int] = {}
        self._memory: list[FloatArray] | None = None  # where the folder cannot be written
        self._in_memory = 0  # rows of it
        self._stored: FloatArray = np.empty((0, *shape), np.float32)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._read()
        except OSError:
            self._memory = []

    def __len__(self) -> int:
        return len(self._rows)

    def compute(
        self,
        keys: Sequence[bytes],
        encode: Callable[[Sequence[int]], FloatArray],
        progress: Progress = no_progress,
    ) -> FloatArray:
        """The features of these keys; those that are missing are computed and stored, some at a time.

        Args:
            keys: of the inputs, N.
            encode: takes positions in `keys` and returns their features, (n, F).
            progress: called with the number of inputs done and N.
        Returns:
            float32 (N, F), in the order of `keys`.
        """
        return self.at(self.rows(keys, encode, progress))

    def at(self, rows: IntArray) -> FloatArray:
        """The features of these rows, a copy.  (N,) -> (N, F)"""
        features: FloatArray = self._stored[rows]
        return features

    def rows(
        self,
        keys: Sequence[bytes],
        encode: Callable[[Sequence[int]], FloatArray],
        progress: Progress = no_progress,
    ) -> IntArray:
        """As `compute`, but the rows of the features in the cache, which stay where they are.  -> int64 (N,)"""
        missing = list({key: place for place, key in reversed(list(enumerate(keys))) if key not in self._rows}.values())
        missing.sort()
        done = len(keys) - len(missing)
        for start in range(0, len(missing), _CHUNK):
            part = missing[start : start + _CHUNK]
            self._append([keys[place] for place in part], encode(part))
            done += len(part)
            progress(done, len(keys))
        if missing:
            self._refresh()
        return np.array([self._rows[key] for key in keys], dtype=np.int64)

    # ------------------------------------------------------------ files

    def _append(self, keys: Sequence[bytes], features: FloatArray) -> None:
        rows = np.ascontiguousarray(features, dtype=np.float32).reshape(len(keys), *self.shape)
        if self._memory is None:
            try:
                with self._locked():
                    count = self._whole_rows()
                    with (self.folder / "features.bin").open("ab") as handle:
                        handle.truncate(count * self._bytes)
                        handle.write(rows.tobytes())
                        handle.flush()
                        os.fsync(handle.fileno())  # after a power cut no key may stand for features that are not there
                    with (self.folder / "keys.bin").open("ab") as handle:
                        handle.truncate(count * KEY_BYTES)
                        handle.write(b"".join(keys))
                return
            except OSError:  # a full disk: go on in memory
                self._refresh()
                self._memory, self._in_memory = [self._stored.copy()], len(self._stored)
        self._rows |= {key: self._in_memory + number for number, key in enumerate(keys)}
        self._memory.append(rows)
        self._in_memory += len(rows)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the writers."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _whole_rows(self) -> int:
        """Rows with key and features: a process that was killed may have left a part of one."""
        sizes = [
            path.stat().st_size if path.exists() else 0
            for path in (self.folder / "keys.bin", self.folder / "features.bin")
        ]
        return min(sizes[0] // KEY_BYTES, sizes[1] // self._bytes)

    def _refresh(self) -> None:
        if self._memory is None:
            self._read()
        elif self._memory:
            self._stored = np.concatenate(self._memory)
            self._memory = [self._stored]

    def _read(self) -> None:
        """Map the features, and read the keys."""
        count = self._whole_rows()
        if not count:
            return
        keys = (self.folder / "keys.bin").read_bytes()[: count * KEY_BYTES]
        self._rows = {keys[at : at + KEY_BYTES]: at // KEY_BYTES for at in range(0, len(keys), KEY_BYTES)}
        self._stored = np.memmap(self.folder / "features.bin", np.float32, "r", shape=(count, *self.shape))
