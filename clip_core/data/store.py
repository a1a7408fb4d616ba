"""Decoded pictures by row number: all in memory where they fit, else decoded when asked for, by threads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_core.config import Preprocessing
from clip_core.data.pairs import decoding_threads, reason
from clip_core.data.preprocess import Pixels, load_image, resize_and_crop
from clip_core.errors import ImageError

_CHUNK = 16  # pictures a thread takes at a time


@dataclass
class PictureStore:
    """uint8 squares of some pictures; row i is `paths[i]`.

    Shapes: N pictures, B asked for, S the side. Use `build`, which decodes every picture once, so that bad
    ones are known before training starts, whether or not the result is kept.
    """

    paths: list[Path]
    preprocessing: Preprocessing
    failures: dict[int, str]  # row -> why it cannot be decoded; such a row reads as black
    _pixels: Pixels | None  # (all the pictures of the build, S, S, 3), or None: decode on demand
    _rows: NDArray[np.int64]  # rows of this store in `_pixels`
    _pool: ThreadPoolExecutor = field(repr=False)

    @classmethod
    def build(
        cls, paths: Sequence[Path], preprocessing: Preprocessing, *, cache_gb: float = 4.0, workers: int | None = None
    ) -> "PictureStore":
        """Decode every picture once, in threads; keep them if all fit into `cache_gb` (10^9 bytes)."""
        size = preprocessing.image_size
        fits = len(paths) * size * size * 3 <= cache_gb * 1e9
        pixels = np.zeros((len(paths), size, size, 3), dtype=np.uint8) if fits else None
        pool = ThreadPoolExecutor(decoding_threads(workers), thread_name_prefix="decode")
        store = cls(list(paths), preprocessing, {}, pixels, np.arange(len(paths)), pool)
        list(pool.map(store._decode_chunk, range(0, len(paths), _CHUNK)))
        return store

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def cached(self) -> bool:
        return self._pixels is not None

    def get(self, rows: NDArray[np.int64]) -> Pixels:
        """Pictures of these rows, uint8 (B, S, S, 3): a copy, in the order asked for.

        Raises:
            ImageError: if a picture that could be decoded when the store was built no longer can.
        """
        if self._pixels is not None:
            return self._pixels[self._rows[rows]]
        size = self.preprocessing.image_size
        pixels = np.zeros((len(rows), size, size, 3), dtype=np.uint8)

        def decode(place: int) -> None:
            row = int(rows[place])
            if row not in self.failures:
                pixels[place] = resize_and_crop(load_image(self.paths[row]), self.preprocessing)

        list(self._pool.map(decode, range(len(rows))))
        return pixels

    def subset(self, rows: NDArray[np.int64]) -> "PictureStore":
        """A store of these rows in this order; it shares the decoded pictures and the threads."""
        failures = {new: self.failures[int(old)] for new, old in enumerate(rows) if int(old) in self.failures}
        paths = [self.paths[int(row)] for row in rows]
        return PictureStore(paths, self.preprocessing, failures, self._pixels, self._rows[rows], self._pool)

    def _decode_chunk(self, start: int) -> None:
        for row in range(start, min(start + _CHUNK, len(self.paths))):
            try:
                pixels = resize_and_crop(load_image(self.paths[row]), self.preprocessing)
            except ImageError as error:
                self.failures[row] = reason(error)
            else:
                if self._pixels is not None:
                    self._pixels[row] = pixels
