"""A gallery: many images embedded once, stored, updated for what changed, and searched exactly.

    INDEX/index.json          the model's identity; path, size and time of each image, in the order of rows
    INDEX/embeddings-ID.npy   float32 (N, D), memory-mapped; a new ID for each content, so no reader sees half

N images that could be decoded, D embedding size.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_core.data.image_files import image_facts, walk_images
from clip_core.errors import DataError, ImageError
from clip_core.files import cache_folder, replacing, write_text
from clip_core.inference.encoder import BATCH, Encoder, PixelArray, cores, read_pixels
from clip_core.network import Preprocessing
from clip_core.scoring import FloatArray, similarity, top_k

INDEX = "index.json"

_CHUNK = 65536  # rows compared at once
_KEPT = 64  # galleries in the user's cache; the longest unused go first


class Entry(NamedTuple):
    """An image as it was when it was embedded; one with a reason could not be, and has no row."""

    path: str
    size: int
    time: int  # of its last change, ns
    reason: str | None = None

    @property
    def facts(self) -> tuple[str, int, int]:
        return self.path, self.size, self.time


class Index(NamedTuple):
    model: str
    embeddings: str
    entries: tuple[Entry, ...]


class Gallery:
    """Images in the order of their paths, with their embeddings.

    Attributes:
        paths: the N images.
        embeddings: float32 (N, D), memory-mapped where it could be stored.
        failures: the images that could not be decoded, and why.
        embedded: how many images were decoded by this opening; 0 when nothing had changed.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        embeddings: FloatArray,
        missing: Sequence[Path] = (),
        embedded: int = 0,
    ) -> None:
        self.paths = [Path(entry.path) for entry in entries if entry.reason is None]
        self.embeddings = embeddings
        self.failures = dict.fromkeys(missing, "it is not there")
        self.failures |= {Path(entry.path): entry.reason for entry in entries if entry.reason is not None}
        self.embedded = embedded

    def __len__(self) -> int:
        return len(self.paths)

    def search(self, query: FloatArray, k: int) -> tuple[list[Path], FloatArray]:
        """The k images nearest to one query (1, D), best first, and their cosines (k,)."""
        chunks = (self.embeddings[row : row + _CHUNK] for row in range(0, len(self), _CHUNK))
        scores = [similarity(query, chunk) for chunk in chunks]
        order, values = top_k(np.concatenate([np.empty((1, 0), np.float32), *scores], axis=1), k)
        return [self.paths[row] for row in order[0]], values[0]

    @classmethod
    def open(
        cls,
        encoder: Encoder,
        images: Path | Sequence[Path],
        index: Path | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "Gallery":
        """The images of a folder (and of those below it) or of a list, embedded where new or changed.

        Args:
            index: the folder of the index; by default one in the user's cache, by gallery and model. A place
                that cannot be written costs the storing, not the answer.
            progress: called with how many images are embedded and how many will be.
        Raises:
            DataError: if the folder does not exist.
        """
        files = list_images(images) if isinstance(images, Path) else [_absolute(path) for path in images]
        looked = {path: _look(path) for path in dict.fromkeys(files)}
        missing = [path for path, entry in looked.items() if entry is None]
        wanted = [entry for entry in looked.values() if entry is not None]
        folder = index or default_index(images, encoder.about.identity)
        store = _Store(folder, encoder.about.identity, encoder.about.embed_dim)
        changed = [entry for entry in wanted if entry.facts not in store.known]
        try:
            for done, (entry, vector) in enumerate(_embed(encoder, changed), start=1):
                store.put(entry, vector)
                progress(done, len(changed))
        finally:  # also when interrupted: what is embedded need not be embedded again
            embeddings = store.save(wanted)
            if index is None:
                _forget_longest_unused(folder.parent)
        return cls([store.known[entry.facts] for entry in wanted], embeddings, missing, len(changed))


class _Store:
    """An index on disk, and what is added to it."""

    def __init__(self, folder: Path, model: str, embed_dim: int) -> None:
        self._folder, self._model, self._embed_dim = folder, model, embed_dim
        self._index, self._stored = self._load()
        self.known = {entry.facts: entry for entry in self._index.entries}
        good = (entry.path for entry in self._index.entries if entry.reason is None)
        self._vectors: dict[str, FloatArray] = {path: self._stored[row] for row, path in enumerate(good)}

    def put(self, entry: Entry, vector: FloatArray | None) -> None:
        self.known[entry.facts] = entry
        if vector is not None:
            self._vectors[entry.path] = vector

    def save(self, wanted: Sequence[Entry]) -> FloatArray:
        """Make the index hold exactly `wanted` (less what was not embedded), in this order.  -> (N, D)"""
        entries = tuple(self.known[entry.facts] for entry in wanted if entry.facts in self.known)
        if entries == self._index.entries:
            with suppress(OSError):
                os.utime(self._folder / INDEX)
            return self._stored
        rows = [self._vectors[entry.path] for entry in entries if entry.reason is None]
        embeddings = np.stack(rows) if rows else np.empty((0, self._embed_dim), np.float32)
        try:
            return self._write(entries, embeddings)
        except OSError:
            return embeddings

    def _write(self, entries: tuple[Entry, ...], embeddings: FloatArray) -> FloatArray:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"embeddings-{uuid.uuid4().hex}.npy"
        with replacing(path) as beside, beside.open("wb") as handle:
            np.save(handle, embeddings)
        index = Index(model=self._model, embeddings=path.name, entries=entries)
        # Escaped, so that a file name that is not UTF-8 can be written too.
        write_text(self._folder / INDEX, json.dumps(index._asdict()))
        if self._index.embeddings:
            (self._folder / self._index.embeddings).unlink(missing_ok=True)
        return _mapped(path)

    def _load(self) -> tuple[Index, FloatArray]:
        """The stored index, or an empty one if there is none that fits: it can always be made again."""
        nothing = Index(self._model, "", ()), np.empty((0, self._embed_dim), np.float32)
        try:
            values = json.loads((self._folder / INDEX).read_text(encoding="utf-8"))
            entries = tuple(Entry(str(path), *facts) for path, *facts in values["entries"])
            index = Index(str(values["model"]), Path(values["embeddings"]).name, entries)
            stored = _mapped(self._folder / index.embeddings)
        except (OSError, ValueError, EOFError, KeyError, TypeError):
            return nothing
        good = sum(entry.reason is None for entry in index.entries)
        fits = stored.shape == (good, self._embed_dim) and stored.dtype == np.float32
        return (index, stored) if fits and index.model == self._model else nothing


def list_images(folder: Path) -> list[Path]:
    """Every image below a folder, by suffix, sorted; hidden files and linked folders are left out.

    Raises:
        DataError: if there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"no folder of images at {folder}; give the path of one.")
    return sorted(walk_images(_absolute(folder)))


def default_index(images: Path | Sequence[Path], identity: str) -> Path:
    """Where the index of a gallery and a model lies by default."""
    listed = [images] if isinstance(images, Path) else images
    key = b"\0".join([identity.encode(), *(os.fsencode(_absolute(path)) for path in listed)])
    kind = b"folder" if isinstance(images, Path) else b"list"
    return cache_folder() / "galleries" / hashlib.sha256(kind + key).hexdigest()[:32]


def _embed(encoder: Encoder, entries: Sequence[Entry]) -> Iterator[tuple[Entry, FloatArray | None]]:
    """Each entry with its embedding (D,), or with the reason why it has none."""
    preprocessing = encoder.about.preprocessing
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(entries), BATCH):
            batch = entries[start : start + BATCH]
            pixels = list(pool.map(lambda entry: _try_to_read(entry, preprocessing), batch))
            good = [p for p in pixels if not isinstance(p, str)]
            vectors = iter(encoder.encode_pixels(np.stack(good)) if good else ())
            for entry, value in zip(batch, pixels, strict=True):
                if isinstance(value, str):
                    yield entry._replace(reason=value), None
                else:
                    yield entry, next(vectors)


def _try_to_read(entry: Entry, preprocessing: Preprocessing) -> PixelArray | str:
    try:
        return read_pixels(Path(entry.path), preprocessing)
    except ImageError as error:
        return str(error)


def _look(path: Path) -> Entry | None:
    try:
        size, time = image_facts(path)
    except OSError:
        return None
    return Entry(str(path), size, time)


def _absolute(path: Path) -> Path:
    """Absolute without following links: an image keeps the name that it was found under."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _mapped(path: Path) -> FloatArray:
    array: FloatArray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _forget_longest_unused(folder: Path) -> None:
    with suppress(OSError):
        indexes = sorted(folder.glob(f"*/{INDEX}"), key=lambda path: path.stat().st_mtime, reverse=True)
        for index in indexes[_KEPT:]:
            shutil.rmtree(index.parent, ignore_errors=True)
