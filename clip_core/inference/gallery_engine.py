"""A gallery in LanceDB, for what one machine's memory or disk does not hold: the same calls, another store.

The address is a folder or an object store, `s3://bucket/path`, which many machines read; a table for each gallery and
model. Without an index the search is exact; an index that is made on the table with LanceDB itself is used, and what
it finds is ranked by float32 cosines. docs/galleries.md has the trial by which this engine was chosen.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clip_core.errors import DataError, MissingExtraError
from clip_core.files import cache_folder
from clip_core.inference.gallery_store import Entry, Hit, wait_for
from clip_core.scoring import FloatArray
from clip_core.text import printable

_QUERIES = 128  # searched at once
_KEYS = 1000  # removed by one statement
_REFINE = 30  # times k: how many of an index's results are ranked by their float32 cosines


class EngineStore:
    """A Store in a LanceDB table: key, path, size, time, reason, vector.

    Raises:
        MissingExtraError: without lancedb.
        DataError: if there is no database at the address, or the table has another embedding size.
    """

    temporary = False

    def __init__(self, address: str, name: str, embed_dim: int) -> None:
        try:
            import lancedb
            import pyarrow
        except ModuleNotFoundError:
            raise MissingExtraError(
                '--engine needs lancedb; install it with: pip install "clip-tui[lancedb]"'
            ) from None
        self._name, self._arrow, self._embed_dim = name, pyarrow, embed_dim
        self._schema = pyarrow.schema(
            [
                ("key", pyarrow.string()),  # of the path, which may hold any byte
                ("path", pyarrow.binary()),
                ("size", pyarrow.int64()),
                ("time", pyarrow.int64()),
                ("reason", pyarrow.string()),
                ("vector", pyarrow.list_(pyarrow.float32(), embed_dim)),
            ]
        )
        try:
            database: Any = lancedb.connect(address)
            self._table = database.create_table(name, schema=self._schema, exist_ok=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = printable(" ".join(str(error).split()), 200)
            raise DataError(f"{printable(address)} cannot be used as a LanceDB database: {reason}.") from error
        self._load()

    @contextmanager
    def writing(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Alone on this machine; two machines at once embed the same images twice, and store them once."""
        folder = cache_folder() / "galleries"
        folder.mkdir(parents=True, exist_ok=True)
        lock = wait_for(folder / f"{self._name}.lock", waiting)
        try:
            self._table.checkout_latest()
            self._load()
            yield
        finally:
            lock.close()

    def put(self, entries: Sequence[Entry], vectors: FloatArray) -> None:
        rows, none = iter(vectors), np.zeros(self._embed_dim, np.float32)  # LanceDB wants a vector in every row
        values = [
            {
                "key": _key(entry.path),
                "path": os.fsencode(entry.path),
                "size": entry.size,
                "time": entry.time,
                "reason": entry.reason,
                "vector": none if entry.reason is not None else next(rows),
            }
            for entry in entries
        ]
        table = self._arrow.Table.from_pylist(values, self._schema)
        self._table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(table)
        self.entries.update((entry.path, entry) for entry in entries)

    def remove(self, paths: Iterable[str]) -> None:
        gone = list(paths)
        for start in range(0, len(gone), _KEYS):
            keys = ", ".join(f"'{_key(path)}'" for path in gone[start : start + _KEYS])
            self._table.delete(f"key IN ({keys})")
        for path in gone:
            self.entries.pop(path, None)

    @property
    def unfinished(self) -> bool:
        return False

    def finish(self) -> None:
        """Join the small pieces that the commits left."""
        self._table.optimize()

    def search(self, queries: FloatArray, k: int) -> list[list[Hit]]:
        hits: list[list[Hit]] = [[] for _ in queries]
        for start in range(0, len(queries), _QUERIES):
            block = queries[start : start + _QUERIES]
            asked = self._table.search(list(block) if len(block) > 1 else block[0]).distance_type("dot")
            asked = asked.where("reason IS NULL", prefilter=True).refine_factor(_REFINE).limit(k)
            found = asked.select(["path", "_distance"]).to_arrow()
            numbers = found["query_index"].to_pylist() if len(block) > 1 else [0] * len(found)
            columns = found["path"].to_pylist(), found["_distance"].to_pylist()
            for number, path, distance in zip(numbers, *columns, strict=True):
                hits[start + number].append(Hit(Path(os.fsdecode(path)), 1 - distance))
        return [sorted(each, key=lambda hit: -hit.score) for each in hits]

    def vectors(self, paths: Sequence[str]) -> FloatArray:
        row_of = {os.fsencode(path): row for row, path in enumerate(paths)}
        rows = np.empty((len(paths), self._embed_dim), np.float32)
        for batch in self._scan("path", "vector"):
            for path, vector in zip(batch["path"].to_pylist(), batch["vector"].to_pylist(), strict=True):
                if path in row_of:
                    rows[row_of[path]] = vector
        return rows

    def _load(self) -> None:
        self.entries: dict[str, Entry] = {}
        names = "path", "size", "time", "reason"
        for batch in self._scan(*names):
            for path, *facts in zip(*(batch[name].to_pylist() for name in names), strict=True):
                self.entries[os.fsdecode(path)] = Entry(os.fsdecode(path), *facts)

    def _scan(self, *columns: str) -> Iterator[Any]:
        """Every row, by Arrow record batches."""
        yield from self._table.search().select(list(columns)).to_batches()


def _key(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()
