"""The images of a gallery on disk, appended as they are embedded; whatever was committed survives a kill.

    INDEX/gallery.sqlite         path, size, time and row of each image; the model; how many rows are valid
    INDEX/embeddings-ID.f32      float32 (N, D), only ever appended to; a row that is no longer wanted is dead
    INDEX/codes-ID.npy, .npz     int8 codes of the first rows (see exact_search), for large galleries; can be made again
    INDEX/lock                   held by the one process that writes

Readers take no lock: a valid row never changes, and rows behind the last valid one are not looked at. Many dead rows
are removed by writing a new file and naming it in the same transaction as the new row numbers.

N rows, D embedding size, Q queries.
"""

import errno
import os
import re
import shutil
import sqlite3
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from zipfile import BadZipFile

import numpy as np

from clip_core.errors import ClipError, DataError
from clip_core.files import DAMAGED_ARRAY, flush_file, scratch_folder
from clip_core.inference.exact_search import FEWEST, CompactRows, codes_shape, compact, nearest
from clip_core.run.lock import Lock
from clip_core.scoring import FloatArray, IntArray

INDEX = "gallery.sqlite"

_OURS = re.compile(r"(embeddings-[0-9a-f]{32}\.f32|codes-[0-9a-f]{32}\.np[yz])")
_SCHEMA = 1
_MOST_DEAD = 0.25  # of the rows; beyond it they are removed from the file
_MOST_WITHOUT_CODES = 0.1  # of the rows, at the end; they are compared in float32
_POLL_SECONDS = 0.2
_ROWS = 65_536  # copied at once


class Entry(NamedTuple):
    """An image as it was when it was embedded; one with a reason could not be, and has no embedding."""

    path: str
    size: int
    time: int  # of its last change, ns
    reason: str | None = None

    @property
    def facts(self) -> tuple[str, int, int]:
        return self.path, self.size, self.time


class Hit(NamedTuple):
    """An image that was found, and its cosine with the query."""

    path: Path
    score: float


def stored_paths(folder: Path) -> list[str]:
    """The images of a stored gallery that have an embedding, without loading it.

    Raises:
        DataError: if there is no gallery in the folder.
    """
    try:
        with closing(sqlite3.connect(f"{(folder / INDEX).absolute().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT path FROM images WHERE reason IS NULL ORDER BY row").fetchall()
    except (sqlite3.Error, ValueError):
        raise DataError(f"{folder} is not a stored gallery; choose another.") from None
    return [os.fsdecode(path) for (path,) in rows]


class Store(Protocol):
    """Where a gallery's embeddings are: a folder, or a vector database."""

    entries: dict[str, Entry]  # by path, as far as embedded
    temporary: bool  # whether it is lost when the process ends

    @property
    def unfinished(self) -> bool:
        """Whether `finish` is to be called though nothing changed."""
        ...

    def writing(self, waiting: Callable[[], None]) -> Any:
        """A context in which this process alone writes; `waiting` is called once if another one does."""
        ...

    def put(self, entries: Sequence[Entry], vectors: FloatArray) -> None:
        """Add or replace images, durably when this returns; a vector (D,) for each entry without a reason."""
        ...

    def remove(self, paths: Iterable[str]) -> None: ...

    def finish(self) -> None:
        """Called when everything that was wanted is in."""
        ...

    def search(self, queries: FloatArray, k: int) -> list[list[Hit]]:
        """The k best of each query (Q, D), best first."""
        ...

    def vectors(self, paths: Sequence[str]) -> FloatArray:
        """Their embeddings, (len(paths), D)."""
        ...


class FolderStore:
    """A gallery in a folder. What cannot be written there goes to a temporary folder, which costs the storing only."""

    _codes: CompactRows | None
    temporary = False

    def __init__(self, folder: Path, model: str, embed_dim: int) -> None:
        self._folder, self._model, self._embed_dim = folder, model, embed_dim
        self._load()

    @contextmanager
    def writing(self, waiting: Callable[[], None]) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = wait_for(self._folder / "lock", waiting)
        except OSError:
            self._go_elsewhere()
            lock = wait_for(self._folder / "lock", waiting)
        try:
            self._load()  # what another process wrote meanwhile
            if not self._file:
                self._create()
            self._remove_unnamed()
            yield
        finally:
            lock.close()

    def put(self, entries: Sequence[Entry], vectors: FloatArray) -> None:
        first = len(self._rows)
        path = self._folder / self._file
        with path.open("r+b") as handle:
            handle.truncate(first * self._embed_dim * 4)  # what was appended but never committed
            handle.seek(0, os.SEEK_END)
            handle.write(np.ascontiguousarray(vectors, np.float32).data)
        flush_file(path)
        free = iter(range(first, first + len(vectors)))
        rows = [None if entry.reason is not None else next(free) for entry in entries]
        with _connected(self._folder / INDEX) as database:
            database.executemany(
                "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)",
                [
                    (os.fsencode(entry.path), entry.size, entry.time, row, entry.reason)
                    for entry, row in zip(entries, rows, strict=True)
                ],
            )
            _write_facts(database, rows=first + len(vectors))
        self._map(first + len(vectors))
        for entry, row in zip(entries, rows, strict=True):
            self._forget(entry.path)
            self._add(entry, row)

    def remove(self, paths: Iterable[str]) -> None:
        gone = list(paths)
        with _connected(self._folder / INDEX) as database:
            database.executemany("DELETE FROM images WHERE path = ?", [(os.fsencode(path),) for path in gone])
        for path in gone:
            self._forget(path)

    @property
    def unfinished(self) -> bool:
        """Whether many rows have no codes: it was killed before they were made, or they were damaged."""
        coded = 0 if self._codes is None else len(self._codes)
        return len(self._rows) - coded > max(FEWEST - 1, _MOST_WITHOUT_CODES * len(self._rows))

    def finish(self) -> None:
        """Remove dead rows where they are many, and make the codes of a large gallery; in memory on a full disk."""
        if len(self._rows) - len(self._row_of) > _MOST_DEAD * len(self._rows):
            with suppress(OSError):  # they stay, and are skipped
                self._rewrite()
        if self.unfinished:
            try:
                self._encode()
            except OSError:
                self._codes = compact(self._rows)

    def search(self, queries: FloatArray, k: int) -> list[list[Hit]]:
        found = nearest(self._rows, queries, k, self._codes, self._dead())
        return [
            [Hit(Path(self._path_of[row]), score) for row, score in zip(rows, scores, strict=True)]
            for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]

    def vectors(self, paths: Sequence[str]) -> FloatArray:
        """A memory-mapped array where the paths are all rows in order, else a copy."""
        rows = np.array([self._row_of[path] for path in paths], np.int64)
        return self._rows if np.array_equal(rows, np.arange(len(self._rows))) else np.asarray(self._rows[rows])

    def touch(self) -> None:
        """Mark as used."""
        with suppress(OSError):
            os.utime(self._folder / INDEX)

    def _load(self) -> None:
        for _ in range(5):  # another process may just have replaced a file that was named
            try:
                return self._read()
            except FileNotFoundError:
                time.sleep(0.02)
            except (OSError, ValueError, KeyError, TypeError):
                break
        return self._empty()

    def _empty(self) -> None:
        self._file = ""
        self._codes = None
        self._dead_rows: tuple[tuple[int, int], IntArray] | None = None
        self._rows: FloatArray = np.empty((0, self._embed_dim), np.float32)
        self._row_of: dict[str, int] = {}
        self._path_of: dict[int, str] = {}
        self.entries: dict[str, Entry] = {}

    def _read(self) -> None:
        self._empty()
        path = self._folder / INDEX
        if not path.is_file():
            return
        with _connected(path, read_only=True) as database:
            facts = dict(database.execute("SELECT key, value FROM facts"))
            if (facts["schema"], facts["model"], facts["size"]) != (_SCHEMA, self._model, self._embed_dim):
                return
            stored = database.execute("SELECT path, size, time, row, reason FROM images ORDER BY row").fetchall()
        rows = int(facts["rows"])
        for name, size, changed, row, reason in stored:
            if row is not None and not 0 <= row < rows:
                raise ValueError("a row that is not there")
            self._add(Entry(os.fsdecode(name), int(size), int(changed), reason), row)
        self._file = Path(str(facts["file"])).name
        try:
            self._map(rows)
        except BaseException:
            self._empty()
            raise
        self._codes = _read_codes(self._folder, str(facts["codes"]), rows, self._embed_dim)

    def _map(self, rows: int) -> None:
        path = self._folder / self._file
        if path.stat().st_size < rows * self._embed_dim * 4:
            raise ValueError("rows are missing")
        if rows:
            self._rows = np.memmap(path, np.float32, "r", shape=(rows, self._embed_dim))

    def _add(self, entry: Entry, row: int | None) -> None:
        self.entries[entry.path] = entry
        if row is not None:
            self._row_of[entry.path] = row
            self._path_of[row] = entry.path

    def _forget(self, path: str) -> None:
        self.entries.pop(path, None)
        row = self._row_of.pop(path, None)
        if row is not None:
            del self._path_of[row]

    def _dead(self) -> IntArray:
        """Rows without an image, in order; counted again only when rows came or went."""
        state = len(self._rows), len(self._row_of)
        if self._dead_rows is None or self._dead_rows[0] != state:
            alive = np.zeros(len(self._rows), bool)
            alive[list(self._row_of.values())] = True
            self._dead_rows = state, np.flatnonzero(~alive)
        return self._dead_rows[1]

    def _create(self) -> None:
        """An empty gallery in place of whatever cannot be used."""
        self._empty()
        for path in (self._folder / INDEX, self._folder / f"{INDEX}-journal"):
            path.unlink(missing_ok=True)
        self._file = f"embeddings-{uuid.uuid4().hex}.f32"
        (self._folder / self._file).touch()
        with _connected(self._folder / INDEX) as database:
            database.execute("CREATE TABLE facts (key TEXT PRIMARY KEY, value)")
            database.execute(
                "CREATE TABLE images (path BLOB PRIMARY KEY, size INTEGER, time INTEGER, row INTEGER, reason TEXT)"
            )
            _write_facts(
                database, schema=_SCHEMA, model=self._model, size=self._embed_dim, file=self._file, rows=0, codes=""
            )

    def _remove_unnamed(self) -> None:
        """Files that no transaction names: of a process that was killed."""
        with _connected(self._folder / INDEX, read_only=True) as database:
            codes = database.execute("SELECT value FROM facts WHERE key = 'codes'").fetchone()[0]
        for path in self._folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name != self._file and path.stem != codes:
                path.unlink(missing_ok=True)

    def _rewrite(self) -> None:
        """The rows without the dead ones, in the order of their paths, in a new file."""
        paths = sorted(self._row_of)
        name = f"embeddings-{uuid.uuid4().hex}.f32"
        with (self._folder / name).open("wb") as handle:
            for start in range(0, len(paths), _ROWS):
                rows = [self._row_of[path] for path in paths[start : start + _ROWS]]
                handle.write(np.ascontiguousarray(self._rows[rows]).data)
        flush_file(self._folder / name)
        with _connected(self._folder / INDEX) as database:
            database.executemany(
                "UPDATE images SET row = ? WHERE path = ?",
                [(row, os.fsencode(path)) for row, path in enumerate(paths)],
            )
            _write_facts(database, file=name, rows=len(paths), codes="")
        self._file, self._codes, self._dead_rows = name, None, None
        self._row_of = {path: row for row, path in enumerate(paths)}
        self._path_of = dict(enumerate(paths))
        self._rows = np.empty((0, self._embed_dim), np.float32)
        self._map(len(paths))
        self._remove_unnamed()

    def _encode(self) -> None:
        name = f"codes-{uuid.uuid4().hex}"
        path = self._folder / f"{name}.npy"
        codes = np.lib.format.open_memmap(path, "w+", np.int8, codes_shape(*self._rows.shape))
        if hasattr(os, "posix_fallocate"):  # a mapped file that the disk has no room for ends the process
            with path.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
        made = compact(self._rows, codes)
        codes.flush()
        kept = {key: value for key, value in vars(made).items() if key != "codes"}
        np.savez(path.with_suffix(".npz"), **kept)
        flush_file(path.with_suffix(".npz"))
        with _connected(self._folder / INDEX) as database:
            _write_facts(database, codes=name)
        self._codes = made
        self._remove_unnamed()

    def _go_elsewhere(self) -> None:
        """Go on in a temporary folder, with what is stored already."""
        scratch = scratch_folder("gallery")
        place = scratch.__enter__()
        self._temporary = weakref.finalize(self, scratch.__exit__, None, None, None)
        if self._file:
            shutil.copytree(self._folder, place, dirs_exist_ok=True, copy_function=shutil.copyfile)
        self._folder, self.temporary = place, True


def wait_for(path: Path, waiting: Callable[[], None]) -> Lock:
    said = False
    while True:
        try:
            return Lock(path, _BusyError())
        except _BusyError:
            if not said:
                waiting()
            said = True
            time.sleep(_POLL_SECONDS)


class _BusyError(ClipError):
    """Another process writes to the gallery."""


@contextmanager
def _connected(path: Path, read_only: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection for one transaction, which is committed at the end.

    Raises:
        OSError: whatever SQLite cannot do: a full disk, a damaged file.
    """
    address = path.absolute().as_uri() + ("?mode=ro" if read_only else "")
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=60)) as database, database:
            yield database
    except sqlite3.Error as error:
        raise OSError(errno.EIO, str(error), str(path)) from error


def _write_facts(database: sqlite3.Connection, **facts: str | int) -> None:
    database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())


def _read_codes(folder: Path, name: str, rows: int, size: int) -> CompactRows | None:
    """The stored codes; None where there are none that fit."""
    if not name:
        return None
    path = folder / f"{Path(name).name}.npy"
    try:
        codes = np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
            parts: dict[str, Any] = {key: value if value.ndim else float(value) for key, value in stored.items()}
        made = CompactRows(codes, **parts)
        shapes = made.codes.shape, made.sums.shape, made.mean.shape, made.basis.shape
        wanted = codes_shape(len(made), size), (len(made),), (size,), (size, size)
        return made if shapes == wanted and codes.dtype == np.int8 and len(made) <= rows else None
    except (*DAMAGED_ARRAY, AttributeError, BadZipFile):
        return None
