"""Parquet: a file or a folder of them, with images as paths or as bytes (as Hugging Face datasets are published).

Images in bytes are written once into the user's cache, in a folder named by the file's sha256: a store, a gallery or a
list needs a path.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_core.data.formats.collect import Collector, many_objects
from clip_core.data.formats.columns import Columns, choose_columns, split_of, split_of_file
from clip_core.data.formats.source import Contents, Source
from clip_core.data.image_files import suffix_of_content
from clip_core.errors import DataError, MissingExtraError
from clip_core.files import cache_folder, sha256
from clip_core.text import printable

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SHAPE = "a Parquet file, or a folder of them, with a column of images (paths or bytes) and one of captions"
_MARK = b"PAR1"
_SUFFIXES = frozenset({".parquet", ".pq"})
_CHOSEN_BY = 1000  # rows that the columns are
_ROWS = 20_000  # read at a time, where images are paths
_ROWS_OF_BYTES = 64
_IN_A_FOLDER = 10_000  # images


@dataclass(frozen=True)
class _Table:
    """One file, and what its columns are."""

    path: Path
    file: "ParquetFile"
    names: list[str]
    binary: frozenset[str]  # columns of bytes, or of bytes with a path
    classes: dict[str, list[str]]  # by column: names of the numbers in it

    def columns(self, names: list[str], count: int) -> Iterator[list[list[Any]]]:
        """Some columns, so many rows at a time."""
        for batch in self.file.iter_batches(batch_size=count, columns=names):
            yield [self._values(batch, name) for name in names]

    def rows(self, names: list[str], count: int) -> Iterator[list[Any]]:
        """Some columns, row by row, read so many at a time."""
        for columns in self.columns(names, count):
            yield from map(list, zip(*columns, strict=True))

    def _values(self, batch: Any, name: str) -> list[Any]:
        values: list[Any] = batch.column(batch.schema.get_field_index(name)).to_pylist()
        known = self.classes.get(name)
        if known is None:
            return values
        return [known[value] if isinstance(value, int) and 0 <= value < len(known) else None for value in values]


def detect(source: Source) -> str | None:
    if source.head[:4] == _MARK or (source.path.suffix.lower() in _SUFFIXES and source.path.is_file()):
        return "it is a Parquet file"
    found = find_files(source.path) if source.path.is_dir() else []
    if found and not source.first_images:
        return f"{len(found):,} Parquet file{'s' if len(found) > 1 else ''} and no images"
    return None


def find_files(path: Path) -> list[Path]:
    """A Parquet file itself, or those in a folder and two folders below it, sorted."""
    if not path.is_dir():
        return [path]
    found = (item for pattern in ("*", "*/*", "*/*/*") for item in path.glob(f"{pattern}.parquet"))
    return sorted(item for item in found if item.is_file() and not item.name.startswith("."))


def read(source: Source) -> Contents:
    """Every row of every file; the columns are chosen by the first one.

    Raises:
        DataError: naming the file that cannot be read, or the columns if none can be chosen.
        MissingExtraError: without pyarrow.
    """
    files = find_files(source.path)
    if not files:
        raise DataError(f"{source.path} has no Parquet file in it; it should be {SHAPE}.")
    splits = [split_of_file(source.path, file) for file in files]
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise MissingExtraError(
            f'{source.path} needs pyarrow to be read; install it with: pip install "clip-tui[parquet]"'
        ) from None
    collector: Collector | None = None
    columns: Columns | None = None
    named: dict[str, str] = {}
    notes: list[str] = []
    written = 0
    for file, split in zip(files, splits, strict=True):
        try:
            table = _open(file)
            if columns is None or collector is None:
                sample = list(islice(_sample(table), _CHOSEN_BY))
                if not sample:
                    raise DataError(f"{file} holds no pairs; it should be {SHAPE}.")
                columns = choose_columns(source, table.names, sample)
                named, notes = columns.named(table.names), list(columns.notes)
                in_bytes = named["image"] in table.binary and _has_bytes(table, named["image"])
                root = cache_folder() / "parquet" if in_bytes else columns.root
                root.mkdir(parents=True, exist_ok=True)
                collector = Collector(root)
            missing = [name for name in named.values() if name not in table.names]
            if missing:
                raise DataError(f"{file} has no column {printable(missing[0])}, which others have; take it away.")
            with many_objects():
                written += _add(source, table, named, collector, split, in_bytes, len(files) > 1)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read as Parquet ({_short(error)}); fetch it again.") from None
    assert collector is not None
    if in_bytes:
        notes.append(f"the images are in the file; they are kept in {collector.root} ({written:,} written now).")
    if any(splits) and "split" not in named:
        named["split"] = "the files' names"
    return collector.contents(source.path, named, notes)


def _open(path: Path) -> _Table:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path)
    schema = file.schema_arrow

    def holds_bytes(kind: Any) -> bool:
        in_struct = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        inner = kind.field("bytes").type if in_struct else kind
        return bool(pyarrow.types.is_binary(inner) or pyarrow.types.is_large_binary(inner))

    binary = frozenset(field.name for field in schema if holds_bytes(field.type))
    return _Table(path, file, list(schema.names), binary, _classes((schema.metadata or {}).get(b"huggingface")))


def _classes(facts: bytes | None) -> dict[str, list[str]]:
    """The names of the classes, which Hugging Face's library keeps beside the columns of numbers."""
    try:
        features = json.loads(facts or b"{}")["info"]["features"]
        return {key: value["names"] for key, value in features.items() if isinstance(value.get("names"), list)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _sample(table: _Table) -> Iterator[list[Any]]:
    """The first rows, with a file name for each image in bytes."""
    texts = [name for name in table.names if name not in table.binary]
    if not texts:
        return
    for row in table.rows(texts, 100):
        values = dict(zip(texts, row, strict=True))
        yield ["0.jpg" if name in table.binary else values[name] for name in table.names]


def _has_bytes(table: _Table, name: str) -> bool:
    """Whether the first image is in the file; where only its path is, the bytes are null."""
    return any(_bytes_of(row[0]) is not None for row in islice(table.rows([name], 1), 10))


def _add(
    source: Source,
    table: _Table,
    named: dict[str, str],
    collector: Collector,
    split: str | None,
    in_bytes: bool,
    several: bool,
) -> int:
    """All rows of a file; returns how many images were written into the cache."""
    images, written = _extract(table, named["image"], collector.root) if in_bytes else ({}, 0)
    names = [named["caption"], *([named["split"]] if "split" in named else [])]
    names = names if in_bytes else [*names, named["image"]]
    template = source.options.class_template if named["caption"] in table.classes else None
    where = f"{table.path.name}, row " if several else "row "
    start, done = collector.pairs[-1].entry if collector.pairs else 0, 0
    rows, size = table.file.metadata.num_rows, table.path.stat().st_size
    for columns in table.columns(names, _ROWS):
        captions, count = columns[0], len(columns[0])
        if template is not None:
            captions = [template.replace("{}", name) if isinstance(name, str) else name for name in captions]
        parts = list(map(split_of, columns[1])) if "split" in named else [split] * count
        numbers = range(done + 1, done + count + 1)
        if in_bytes:
            names_of = [images.get(number) for number in numbers]
            _add_extracted(collector, names_of, captions, where, start, numbers, parts)
        else:
            collector.add_many(start + done + 1, columns[-1], captions, where, numbers, parts if any(parts) else None)
        done += count
        source.progress(done * size // max(rows, 1), size)
    return written


def _add_extracted(
    collector: Collector,
    images: list[str | None],
    captions: list[Any],
    where: str,
    start: int,
    numbers: range,
    splits: list[str | None],
) -> None:
    """Rows whose images were in the file, or were not."""
    for image, caption, number, split in zip(images, captions, numbers, splits, strict=True):
        problem = None if image else "it has no image"
        collector.add(start + number, image or "", caption, f"{where}{number}", problem, split)


def _extract(table: _Table, column: str, folder: Path) -> tuple[dict[int, str], int]:
    """The file of each row's image below `folder`; written if they are not there yet, all or none.

    Raises:
        DataError: if they cannot be written.
    """
    key = sha256(table.path)[:32]
    if not (folder / key).is_dir():
        beside = folder / f".{key}.{os.getpid()}.tmp"
        try:
            beside.mkdir()
            for number, (value,) in enumerate(table.rows([column], _ROWS_OF_BYTES), start=1):
                content = _bytes_of(value)
                if content is None:
                    continue
                place = beside / f"{number // _IN_A_FOLDER:04d}"
                place.mkdir(exist_ok=True)
                (place / f"{number:08d}{suffix_of_content(content)}").write_bytes(content)
            beside.replace(folder / key)
        except OSError as error:
            if not (folder / key).is_dir():  # another process may have been first
                reason = error.strerror or str(error)
                raise DataError(f"the images of {table.path} cannot be kept in {folder} ({reason}); free it.") from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        written = 1
    else:
        written = 0
    found = {
        int(name.partition(".")[0]): f"{key}/{place.name}/{name}"
        for place in (folder / key).iterdir()
        for name in os.listdir(place)  # noqa: PTH208  (names are all that is needed)
    }
    return found, len(found) * written


def _bytes_of(value: Any) -> bytes | None:
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) and content else None


def _short(error: Exception) -> str:
    return printable(str(error).splitlines()[0] if str(error) else type(error).__name__, 120).rstrip(".")
