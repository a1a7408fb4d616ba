"""The images of a gallery: found, watched for changes, and embedded in a stream that may be interrupted.

D embedding size.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_core.data.image_files import FolderListing, image_facts, list_folder
from clip_core.errors import DataError, ImageError
from clip_core.inference.encoder import BATCH, Encoder, PixelArray, cores, read_pixels
from clip_core.inference.gallery_store import Entry, Store
from clip_core.network import Preprocessing
from clip_core.scoring import FloatArray

_COMMIT_SECONDS, _COMMIT_IMAGES = 2.0, 4096  # embedded between two commits, at most
_FIRST_BATCH, _BATCH_SECONDS = 8, 0.25  # batches grow while one takes less: Ctrl-C waits for the one that runs
_COARSEST_CLOCK = 2_000_000_000  # ns; of the times in folders (FAT)
_CHECK_SECONDS, _CHECK_SHARE = 0.02, 20  # a check that takes longer is made for a twentieth of the time at most


class Looked(NamedTuple):
    """The images as they are now."""

    entries: list[Entry]
    missing: list[Path]
    folders: dict[str, int]  # with the times of their last change, ns
    left_out: list[Path]
    started: int  # ns
    seconds: float  # that looking at the entries took


def look_at(images: Path | Sequence[Path]) -> Looked:
    started = time.time_ns()
    listing = (
        _listed(images) if isinstance(images, Path) else FolderListing([absolute(path) for path in images], {}, [])
    )
    before = time.monotonic()
    looked = {path: _look(path) for path in dict.fromkeys(listing.images)}
    return Looked(
        [entry for entry in looked.values() if entry is not None],
        [path for path, entry in looked.items() if entry is None],
        listing.folders,
        listing.left_out,
        started,
        time.monotonic() - before,
    )


class Watch:
    """Whether the images changed since they were looked at."""

    def __init__(self, looked: Looked) -> None:
        self._looked, self._seconds, self._checked = looked, looked.seconds, time.monotonic()

    def changed(self) -> bool:
        looked = self._looked
        for folder, then in looked.folders.items():
            # A folder that changed right before it was read may have changed right after with the same time.
            if _changed_at(folder) != then or then > looked.started - _COARSEST_CLOCK:
                return True
        now = time.monotonic()
        if self._seconds > _CHECK_SECONDS and now - self._checked < _CHECK_SHARE * self._seconds:
            return False
        changed = any(_look(Path(entry.path)) != entry for entry in looked.entries)
        changed = changed or any(_look(path) is not None for path in looked.missing)
        self._checked, self._seconds = time.monotonic(), time.monotonic() - now
        return changed


def list_images(folder: Path) -> list[Path]:
    """Every image below a folder, by suffix, sorted; see `list_folder` for what is left out.

    Raises:
        DataError: if there is no such folder.
    """
    return _listed(folder).images


def embed_into(store: Store, encoder: Encoder, entries: Sequence[Entry], progress: Callable[[int, int], None]) -> int:
    """Embed the entries and put them into the store, every few seconds."""
    pending: list[Entry] = []
    vectors: list[FloatArray] = []
    done, committed = 0, time.monotonic()

    def commit() -> None:
        nonlocal committed
        if pending:
            store.put(pending, np.stack(vectors) if vectors else np.empty((0, encoder.about.embed_dim), np.float32))
        pending.clear()
        vectors.clear()
        committed = time.monotonic()

    try:
        for entry, vector in _embed(encoder, entries):
            pending.append(entry)
            if vector is not None:
                vectors.append(vector)
            done += 1
            if len(pending) >= _COMMIT_IMAGES or time.monotonic() - committed > _COMMIT_SECONDS:
                commit()
            progress(done, len(entries))
        commit()
    except BaseException as error:
        if len(vectors) == sum(entry.reason is None for entry in pending):  # not interrupted between the two
            commit()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{done:,} of {len(entries):,} images embedded and kept") from None
        raise
    return done


def _embed(encoder: Encoder, entries: Sequence[Entry]) -> Iterator[tuple[Entry, FloatArray | None]]:
    """Each entry with its embedding (D,), or with the reason why it has none; images are decoded one batch ahead."""
    preprocessing, left, size = encoder.about.preprocessing, iter(entries), _FIRST_BATCH

    with ThreadPoolExecutor(cores()) as pool:

        def decode() -> list[tuple[Entry, Future[PixelArray | str]]]:
            return [(entry, pool.submit(_try_to_read, entry, preprocessing)) for entry in islice(left, size)]

        following = decode()
        try:
            while following:
                batch = [(entry, future.result()) for entry, future in following]
                following = decode()
                good = [value for _, value in batch if not isinstance(value, str)]
                started = time.monotonic()
                vectors = iter(encoder.encode_pixels(np.stack(good)) if good else ())
                seconds = time.monotonic() - started
                size = (
                    min(BATCH, 2 * size) if seconds < _BATCH_SECONDS else max(1, size // 2) if seconds > 0.5 else size
                )
                for entry, value in batch:
                    yield _embedded(entry, value if isinstance(value, str) else next(vectors))
        finally:
            for _, future in following:
                future.cancel()


def _embedded(entry: Entry, value: FloatArray | str) -> tuple[Entry, FloatArray | None]:
    if isinstance(value, str):
        return entry._replace(reason=value), None
    if not np.isfinite(value).all():
        return entry._replace(reason="its embedding is not finite"), None
    return entry, value


def _try_to_read(entry: Entry, preprocessing: Preprocessing) -> PixelArray | str:
    try:
        return read_pixels(Path(entry.path), preprocessing)
    except ImageError as error:
        return str(error)


def _listed(folder: Path) -> FolderListing:
    if not folder.is_dir():
        raise DataError(f"no folder of images at {folder}; give the path of one.")
    return list_folder(absolute(folder))


def _look(path: Path) -> Entry | None:
    try:
        size, changed = image_facts(path)
    except (OSError, ValueError):  # a name with a zero byte
        return None
    return Entry(str(path), size, changed)


def _changed_at(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns  # noqa: PTH116
    except OSError:
        return None


def absolute(path: Path) -> Path:
    """Absolute without following links: an image keeps the name that it was found under."""
    return Path(os.path.abspath(path))  # noqa: PTH100
