"""Decoded images by row number: all in memory or mapped where they fit, else decoded on demand, by threads."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL
from numpy.typing import NDArray

from clip_core.data.decode_cache import DecodeCache, PendingPixels, identity
from clip_core.data.pairs import decoding_threads, reason
from clip_core.data.preprocess import Pixels, load_image, resize_and_crop
from clip_core.data.progress import Progress, no_progress, run_interruptibly
from clip_core.errors import ImageError
from clip_core.files import cache_folder
from clip_core.network import Preprocessing

_CHUNK = 16  # images a thread takes at a time
_PAGE = 4096


class Decoder(NamedTuple):
    """From an image's path to uint8 (S, S, 3). The name changes whenever the pixels may; it is part of a cache's key.

    `decode` raises ImageError for an image that cannot be used.
    """

    name: str
    decode: Callable[[Path, Preprocessing], Pixels]


def _decode(path: Path, preprocessing: Preprocessing) -> Pixels:
    return resize_and_crop(load_image(path), preprocessing)


EXACT = Decoder(f"pillow {PIL.__version__}", _decode)  # the pixels that inference sees


class Images(Protocol):
    """Images by row: pixels, uint8 (B, S, S, 3), or features of a frozen encoder, float32 (B, F) or (B, P, F)."""

    @property
    def paths(self) -> list[Path]: ...

    @property
    def preprocessing(self) -> Preprocessing: ...

    def __len__(self) -> int: ...

    def get(self, rows: NDArray[np.int64]) -> NDArray[Any]: ...


@dataclass
class ImageStore:
    """uint8 squares of some images; row i is `paths[i]`.

    Shapes: N images, B asked for, S the side. Use `build`, which decodes every image once, or finds them decoded
    by an earlier run, so that bad ones are known before training starts, whether or not the result is kept.
    """

    paths: list[Path]
    preprocessing: Preprocessing
    failures: dict[int, str]  # row -> why it cannot be decoded; such a row reads as black
    decoder: Decoder
    _pixels: Pixels | None  # (all the images of the build, S, S, 3), or None: decode on demand
    _rows: NDArray[np.int64]  # rows of this store in `_pixels`
    _pool: ThreadPoolExecutor = field(repr=False)

    @property
    def _threads(self) -> int:
        return self._pool._max_workers

    @classmethod
    def build(
        cls,
        paths: Sequence[Path],
        preprocessing: Preprocessing,
        *,
        cache_gb: float = 4.0,
        workers: int | None = None,
        decoder: Decoder = EXACT,
        progress: Progress = no_progress,
    ) -> "ImageStore":
        """Decode every image once, in threads; keep them if all fit into `cache_gb` (10^9 bytes).

        They are kept in a file in the user's cache, for other runs too, or in memory where that cannot be written.
        An interrupted build keeps what it decoded, for the next one to continue.

        Raises:
            KeyboardInterrupt: saying how many images were decoded, and whether they were kept.
        """
        pool = ThreadPoolExecutor(decoding_threads(workers), thread_name_prefix="decode")
        store = cls(list(paths), preprocessing, {}, decoder, None, np.arange(len(paths)), pool)
        shape = store._shape(len(paths))
        need = float(np.prod(shape, dtype=np.float64))
        if need > cache_gb * 1e9:
            store._decode_all(lambda row, pixels: None, progress)
            return store
        cache = DecodeCache(cache_folder() / "images", cache_gb * 1e9)
        key = identity(paths, preprocessing, decoder.name)
        if not store._found(cache, key, shape):
            store._keep(cache.create(key, shape), shape, progress)
        if store._pixels is not None and need < _memory() / 2:
            store._pixels.reshape(-1)[::_PAGE].max(initial=0)  # read in one go what the first epoch would by bits
        return store

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def cached(self) -> bool:
        return self._pixels is not None

    def get(self, rows: NDArray[np.int64]) -> Pixels:
        """Images of these rows, uint8 (B, S, S, 3): a copy, in the order asked for.

        Raises:
            ImageError: if an image that could be decoded when the store was built no longer can.
        """
        if self._pixels is not None:
            return self._pixels[self._rows[rows]]
        pixels = np.zeros(self._shape(len(rows)), dtype=np.uint8)

        def decode(place: int) -> None:
            row = int(rows[place])
            if row not in self.failures:
                pixels[place] = self.decoder.decode(self.paths[row], self.preprocessing)

        list(self._pool.map(decode, range(len(rows))))
        return pixels

    def subset(self, rows: NDArray[np.int64]) -> "ImageStore":
        """A store of these rows in this order; it shares the decoded images and the threads."""
        failures = {new: self.failures[int(old)] for new, old in enumerate(rows) if int(old) in self.failures}
        paths = [self.paths[int(row)] for row in rows]
        return ImageStore(paths, self.preprocessing, failures, self.decoder, self._pixels, self._rows[rows], self._pool)

    def _shape(self, count: int) -> tuple[int, int, int, int]:
        return count, self.preprocessing.image_size, self.preprocessing.image_size, 3

    def _found(self, cache: DecodeCache, key: str, shape: tuple[int, ...]) -> bool:
        """Take the images of an earlier run, unless one that could not be decoded then can be now."""
        known = cache.open(key, shape)
        if known is None or any(self._try(row) is not None for row in known[1]):
            self.failures.clear()
            return False
        self._pixels = np.asarray(known[0])
        return True

    def _keep(self, pending: PendingPixels | None, shape: tuple[int, ...], progress: Progress) -> None:
        """Decode everything into a cache file; else into memory; else, where that has no room either, not at all."""
        if pending is not None:
            try:
                with pending:
                    self._fill(pending, progress)
                return
            except OSError:  # without room on the disk the images are kept in memory
                self.failures.clear()
        fits = np.prod(shape, dtype=np.float64) < _memory() / 2
        pixels = np.zeros(shape, dtype=np.uint8) if fits else None

        def put(row: int, chunk: Pixels) -> None:
            if pixels is not None:
                pixels[row : row + len(chunk)] = chunk

        self._decode_all(put, progress)
        self._pixels = pixels

    def _fill(self, pending: PendingPixels, progress: Progress) -> None:
        """Decode what an interrupted run had not yet, into a cache file."""
        for row in pending.failed:
            self._try(row)  # for the reason, or because it can be decoded now: then its chunk is decoded again
            if row not in self.failures:
                pending.done[row - row % _CHUNK : row - row % _CHUNK + _CHUNK] = False
        try:
            self._decode_all(pending.put, progress, pending.done)
        except KeyboardInterrupt as interrupt:
            try:
                pending.suspend(list(self.failures))
            except OSError as error:
                raise KeyboardInterrupt(f"{interrupt}, not kept ({error.strerror})") from None
            raise KeyboardInterrupt(f"{interrupt} and kept") from None
        self._pixels = np.asarray(pending.finish(list(self.failures)))

    def _decode_all(
        self, put: Callable[[int, Pixels], None], progress: Progress, known: NDArray[np.bool_] | None = None
    ) -> None:
        """Decode every image that is not known yet and hand on some at a time; what cannot be decoded is black."""

        def decode_chunk(start: int) -> int:
            chunk = np.zeros(self._shape(min(_CHUNK, len(self.paths) - start)), dtype=np.uint8)
            for place in range(len(chunk)):
                pixels = self._try(start + place)
                if pixels is not None:
                    chunk[place] = pixels
            put(start, chunk)
            return len(chunk)

        total = len(self.paths)
        starts = [s for s in range(0, total, _CHUNK) if known is None or not known[s : s + _CHUNK].all()]
        done = total - sum(min(_CHUNK, total - start) for start in starts)
        try:
            for count in run_interruptibly(self._pool, self._threads, decode_chunk, starts):
                done += count
                progress(done, total)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{done:,} of {total:,} images decoded") from None

    def _try(self, row: int) -> Pixels | None:
        try:
            return self.decoder.decode(self.paths[row], self.preprocessing)
        except ImageError as error:
            self.failures[row] = reason(error)
            return None


def _memory() -> float:
    """Bytes of the machine's memory, or a cautious guess."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return 8e9
