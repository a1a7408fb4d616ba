"""A gallery: many images embedded once, stored, updated for what changed, and searched exactly.

N images that could be decoded, D embedding size, Q queries.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from clip_core.data.preprocess import ImageSource
from clip_core.errors import MissingExtraError, ShapeError, UsageError
from clip_core.files import cache_folder, replacing
from clip_core.inference.encoder import Encoder
from clip_core.inference.gallery_images import Looked, Watch, absolute, embed_into, look_at
from clip_core.inference.gallery_store import INDEX, Entry, FolderStore, Hit, Store
from clip_core.inference.inputs import as_folder_or_paths
from clip_core.scoring import FloatArray, l2_normalise
from clip_core.text import printable

Queries = ImageSource | FloatArray | Sequence[Any]

_ROW_GROUP = 16_384  # of a Parquet file
_KEPT = 64  # galleries in the user's cache; the longest unused go first


def _nothing(*_: object) -> None:
    """For who does not watch."""


class Gallery:
    """Images and their embeddings. Make one by `CLIPInference.gallery` or `Gallery.open`.

    Attributes:
        paths: the N images, in the order of the list or of their names.
        failures: the images that are missing or could not be decoded, and why.
        left_out: hidden images and folders of thumbnails below the folder, which do not count.
        embedded: how many images were decoded by this opening, or by the last `refresh`; 0 when nothing had changed.
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Path | Sequence[Path],
        store: Store,
        progress: Callable[[int, int], None] = _nothing,
        waiting: Callable[[], None] = _nothing,
    ) -> None:
        self._encoder, self._images, self._store = encoder, images, store
        self._update(look_at(images), progress, waiting)

    @classmethod
    def open(
        cls,
        encoder: Encoder,
        images: str | PathLike[str] | Iterable[str | PathLike[str]],
        index: Path | None = None,
        progress: Callable[[int, int], None] = _nothing,
        waiting: Callable[[], None] = _nothing,
        engine: str | None = None,
    ) -> "Gallery":
        """The images of a folder (and of those below it) or of a list, embedded where new or changed.

        What is embedded is stored every few seconds: an opening that was interrupted or killed goes on from there.

        Args:
            images: a folder, or paths of images.
            index: the folder of the index; by default one in the user's cache, by gallery and model. A place
                that cannot be written costs the storing, not the answer.
            progress: called with how many images are embedded and how many will be.
            waiting: called once if another process is embedding the same gallery; this one waits for it.
            engine: the address of a LanceDB database in place of the index, see `gallery_engine`.
        Raises:
            DataError: if the folder does not exist.
            UsageError: for what is no path.
            KeyboardInterrupt: saying how many images are embedded and kept.
        """
        listed = as_folder_or_paths(images)
        about = encoder.about
        if engine is not None:
            from clip_core.inference.gallery_engine import EngineStore

            return cls(
                encoder,
                listed,
                EngineStore(engine, default_name(listed, about.identity), about.embed_dim),
                progress,
                waiting,
            )
        folder = index or default_index(listed, about.identity)
        store = FolderStore(folder, about.identity, about.embed_dim)
        try:
            return cls(encoder, listed, store, progress, waiting)
        finally:
            store.touch()
            if index is None:
                _forget_longest_unused(folder.parent)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def stored(self) -> bool:
        """Whether the embeddings outlive the process: not where their folder cannot be written."""
        return not self._store.temporary

    @property
    def embeddings(self) -> FloatArray:
        """float32 (N, D), in the order of `paths`; memory-mapped where nothing was removed or added since."""
        return self._store.vectors([str(path) for path in self.paths])

    def search(self, queries: Queries, k: int = 10) -> list[list[Hit]]:
        """The k images with the largest cosine with each query, exactly, best first; one list for each query.

        Args:
            queries: a text (str), an image (a Path, a PIL image, a uint8 array (H, W, 3)), an embedding (float (D,)),
                a list of any of these, or embeddings (Q, D). They are compared in blocks, in bounded memory.
            k: how many at most.
        Raises:
            UsageError: if k is below 1 or a query is none of these.
            ShapeError: if an embedding does not have D values.
        """
        if k < 1:
            raise UsageError(f"k is {k}; it must be at least 1.")
        vectors = _query_vectors(self._encoder, queries)
        if not len(vectors) or not len(self):
            return [[] for _ in vectors]
        return self._store.search(vectors, k)

    def refresh(self, progress: Callable[[int, int], None] = _nothing) -> bool:
        """Embed what was added or changed since, and forget what was removed. Returns whether anything had changed.

        A folder is read again only when its time changed, as it does when an image is added, removed, renamed or
        replaced. An image written over in place shows in its own time only: all these times are compared as long as
        that takes less than 20 ms, in larger galleries for a twentieth of the time at most.
        """
        if not self._watch.changed():
            return False
        looked = look_at(self._images)
        before = (self.paths, self.failures)
        self._update(looked, progress, _nothing)
        return self.embedded > 0 or before != (self.paths, self.failures)

    def save(self, path: Path) -> None:
        """Write the embeddings to a .npz (paths, embeddings, model) or a .parquet file (columns path, embedding).

        Raises:
            UsageError: for another suffix.
            MissingExtraError: for Parquet without pyarrow.
        """
        names, model = [str(each) for each in self.paths], self._encoder.about.identity
        if path.suffix == ".npz":
            with replacing(path) as beside, beside.open("wb") as handle:
                np.savez(handle, paths=np.array(names, np.str_), embeddings=self.embeddings, model=np.array(model))
        elif path.suffix == ".parquet":
            _save_parquet(path, names, self.embeddings, model)
        else:
            raise UsageError(f"{path} cannot be written: the name of the file ends in .parquet or .npz.")

    def _update(self, looked: "Looked", progress: Callable[[int, int], None], waiting: Callable[[], None]) -> None:
        store, self.embedded = self._store, 0
        wanted = {entry.path: entry for entry in looked.entries}
        if store.unfinished or _differences(store, wanted) != ([], []):
            with store.writing(waiting):
                changed, gone = _differences(store, wanted)
                self.embedded = embed_into(store, self._encoder, changed, progress)
                if gone:
                    store.remove(gone)
                store.finish()
        known = [store.entries[path] for path in wanted]
        self.paths = [Path(entry.path) for entry in known if entry.reason is None]
        self.failures = dict.fromkeys(looked.missing, "it is not there")
        self.failures |= {Path(entry.path): entry.reason for entry in known if entry.reason is not None}
        self.left_out = looked.left_out
        self._watch = Watch(looked)


class OpenGalleries:
    """The galleries asked for lately, kept open."""

    def __init__(self, encoder: Encoder, most: int = 4) -> None:
        self._encoder, self._most = encoder, most
        self._open: dict[Path | tuple[Path, ...], Gallery] = {}

    def get(self, images: Path | Sequence[Path], progress: Callable[[int, int], None] = _nothing) -> Gallery:
        """The gallery as it is now; `progress` is called with how many images are embedded and how many will be."""
        key = images if isinstance(images, Path) else tuple(images)
        gallery = self._open.pop(key, None)
        if gallery is None:
            gallery = Gallery.open(self._encoder, images, progress=progress)
        else:
            gallery.refresh(progress)
        self._open[key] = gallery
        while len(self._open) > self._most:
            del self._open[next(iter(self._open))]
        return gallery


def default_index(images: Path | Sequence[Path], identity: str) -> Path:
    """Where the index of a gallery and a model lies by default."""
    return cache_folder() / "galleries" / default_name(images, identity)


def default_name(images: Path | Sequence[Path], identity: str) -> str:
    """A name for a gallery and a model."""
    listed = [images] if isinstance(images, Path) else images
    key = b"\0".join([identity.encode(), *(os.fsencode(absolute(path)) for path in listed)])
    kind = b"folder" if isinstance(images, Path) else b"list"
    return hashlib.sha256(kind + key).hexdigest()[:32]


def _query_vectors(encoder: Encoder, queries: Queries) -> FloatArray:
    """L2-normalised embeddings of the queries, in their order.  -> (Q, D)"""
    size = encoder.about.embed_dim
    if isinstance(queries, np.ndarray) and queries.dtype.kind == "f":
        vectors = np.atleast_2d(np.asarray(queries, np.float32))
        if vectors.ndim != 2 or vectors.shape[1] != size:
            raise ShapeError(f"embeddings of shape {queries.shape} cannot be compared with those of {size} values.")
        if not np.isfinite(vectors).all():
            raise UsageError("an embedding to search for is not finite.")
        return l2_normalise(vectors)
    each = _each(queries)
    vectors = np.empty((len(each), size), np.float32)
    for kind, rows in _by_kind(each).items():
        chosen = [each[row] for row in rows]
        if kind == "vector":
            vectors[rows] = np.concatenate([_query_vectors(encoder, np.asarray(one)) for one in chosen])
        else:
            vectors[rows] = encoder.encode_texts(chosen) if kind == "text" else encoder.encode_images(chosen)
    return vectors


def _each(queries: Any) -> list[Any]:
    """The queries as a list, also where there is one."""
    if isinstance(queries, np.ndarray):  # names, a batch of images, or one image
        return list(queries) if queries.dtype.kind in "OUS" or queries.ndim == 4 else [queries]
    single = isinstance(queries, str | bytes | dict | set | Path) or not hasattr(queries, "__iter__")
    return [queries] if single else list(queries)


def _by_kind(queries: Sequence[Any]) -> dict[str, list[int]]:
    kinds: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        if isinstance(query, str):
            kind = "text"
        elif isinstance(query, np.ndarray | np.generic) and query.dtype.kind == "f":
            kind = "vector"
        elif isinstance(query, Path | np.ndarray) or hasattr(query, "convert"):
            kind = "image"
        else:
            raise UsageError(
                f"query {row + 1} is {printable(repr(query), 40)}; give a text, a Path or an image, or an embedding."
            )
        kinds.setdefault(kind, []).append(row)
    return kinds


def _differences(store: Store, wanted: dict[str, Entry]) -> tuple[list[Entry], list[str]]:
    """What is to be embedded, and the paths to be removed."""
    known = store.entries
    changed = [entry for path, entry in wanted.items() if path not in known or known[path].facts != entry.facts]
    return changed, [path for path in known if path not in wanted]


def _save_parquet(path: Path, names: Sequence[str], embeddings: FloatArray, model: str) -> None:
    """Row groups of 16,384. Of a name that is not UTF-8, the other bytes are written as \\xNN."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise MissingExtraError(
            f'{path} needs pyarrow; install it with: pip install "clip-tui[parquet]", or save a .npz.'
        ) from None
    kind = pyarrow.list_(pyarrow.float32(), embeddings.shape[1])
    schema = pyarrow.schema([("path", pyarrow.string()), ("embedding", kind)], metadata={"model": model})
    with replacing(path) as beside, pyarrow.parquet.ParquetWriter(beside, schema) as writer:
        for start in range(0, len(names), _ROW_GROUP):
            rows = np.ascontiguousarray(embeddings[start : start + _ROW_GROUP])
            texts = [
                os.fsencode(name).decode("utf-8", "backslashreplace") for name in names[start : start + _ROW_GROUP]
            ]
            vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])
            writer.write_table(pyarrow.table([pyarrow.array(texts), vectors.cast(kind)], schema=schema))


def _forget_longest_unused(folder: Path) -> None:
    with suppress(OSError):
        indexes = sorted(folder.glob(f"*/{INDEX}"), key=lambda path: path.stat().st_mtime, reverse=True)
        for index in indexes[_KEPT:]:
            shutil.rmtree(index.parent, ignore_errors=True)
