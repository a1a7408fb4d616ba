"""CSV and TSV: the delimiter is the one that splits the lines evenly, the columns are detected by their values."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

from clip_core.data.formats.collect import Collector
from clip_core.data.formats.columns import CAPTION_NAMES, IMAGE_NAMES, choose_columns
from clip_core.data.formats.source import Contents, Source
from clip_core.data.image_files import SUFFIXES
from clip_core.errors import DataError

SHAPE = "a CSV or TSV file with a column of images and one of captions"
_SUFFIXES = frozenset({".csv", ".tsv", ".tab", ".psv"})
_DELIMITERS = (",", "\t", ";", "|")
_SAMPLE = 100  # records that the delimiter is detected by
_MOST_LINES = 20  # of one field
_EVEN = 0.8  # share of them that must have the same number of fields for a table
_NAMED_EVEN = 0.3  # likewise, of a file that is named as one


class Dialect(NamedTuple):
    delimiter: str
    quoted: bool
    spaced: bool  # a space after the delimiter belongs to neither field


def detect(source: Source) -> str | None:
    if source.path.suffix.lower() in _SUFFIXES and source.path.is_file():
        return f"its name ends in {source.path.suffix}"
    head = "\n".join(source.head_lines)
    dialect = find_dialect(head)
    if dialect is None:
        return None
    names, _ = _split_header(list(islice(_records(head, dialect), _SAMPLE)))
    rows = [row for _, row in islice(_records(head, dialect), _SAMPLE)]
    has_images = any(_is_image(value) for row in rows[:5] for value in row)
    return f"it is a table with {len(names)} columns" if has_images else None


def read(source: Source) -> Contents:
    """Every record that is not blank.

    Raises:
        DataError: naming the line, or the columns if none can be chosen.
    """
    dialect = find_dialect("\n".join(source.head_lines), _NAMED_EVEN)
    if dialect is None:
        raise DataError(f"{source.path} has no columns; it should be {SHAPE}, separated by comma, tab, ; or |.")
    try:
        records = list(_records(source.text, dialect))
    except csv.Error as error:
        raise DataError(f"{source.path}: not a table ({error}); look for a quote that is never closed.") from None
    unclosed = next((line for line, row in records if any(_swallowed(value) for value in row)), None)
    if unclosed is not None:
        raise DataError(f"{source.path}, line {unclosed}: a quote is never closed; close it, or double it.")
    names, rows = _split_header(records)
    if not rows:
        raise DataError(f"{source.path} holds no pairs; it should be {SHAPE}.")
    columns = choose_columns(source, names, [row for _, row in rows[:1000]])
    collector = Collector(columns.root)
    needed = max(columns.image, columns.caption) + 1
    for entry, (line, row) in enumerate(rows, start=1):
        problem = f"it has {len(row)} columns of {len(names)}" if len(row) < needed else None
        values = row + [""] * (needed - len(row))
        caption = values[columns.caption]
        if columns.caption == len(names) - 1:  # a last caption that has the delimiter in it, and no quotes around
            caption = dialect.delimiter.join(values[columns.caption :])
        collector.add(entry, values[columns.image].strip(), caption, f"line {line}", problem)
    found = {"image": names[columns.image], "caption": names[columns.caption]}
    return Contents(collector.pairs, columns.root, found)


def find_dialect(head: str, least: float = _EVEN) -> Dialect | None:
    """The delimiter that gives most records the same number of fields, two at least; None if none does.

    A quote that is never closed swallows the rest: where that splits the lines less evenly, quotes are plain letters.
    """
    best: tuple[float, Dialect] | None = None
    for delimiter in _DELIMITERS:
        for quoted in (True, False):
            dialect = Dialect(delimiter, quoted, f'{delimiter} "' in head)
            evenness = _evenness(head, dialect)
            if evenness >= least and (best is None or evenness > best[0]):
                best = evenness, dialect
    return best and best[1]


def _evenness(head: str, dialect: Dialect) -> float:
    """Share of the records with as many fields as the first; more than that, as unquoted captions make, count less."""
    try:
        records = [row for _, row in islice(_records(head, dialect), _SAMPLE)]
    except csv.Error:
        return 0.0
    if not records or len(records[0]) < 2 or any(_swallowed(value) for row in records for value in row):
        return 0.0
    wanted = len(records[0])
    return sum(1.0 if len(row) == wanted else 0.9 for row in records if len(row) >= wanted) / len(records)


def _swallowed(value: str) -> bool:
    """Whether a field holds so many lines that its quote was never closed."""
    return value.count("\n") > _MOST_LINES


def _records(text: str, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not blank, with the line that it begins at."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=dialect.delimiter,
        quoting=quoting,
        skipinitialspace=dialect.spaced,
    )
    line = 1
    for row in reader:
        if any(value.strip() for value in row):
            yield line, row
        line = reader.line_num + 1


def _split_header(records: Sequence[tuple[int, list[str]]]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns and the rest; without a header the columns are called 1, 2, ..."""
    first = records[0][1] if records else []
    known = {name.strip().casefold().replace(" ", "_") for name in first} & {*IMAGE_NAMES, *CAPTION_NAMES}
    if first and (known or not any(_is_image(value) for value in first)):
        return [name.strip() for name in first], list(records[1:])
    return [str(number) for number in range(1, len(first) + 1)], list(records)


def _is_image(value: str) -> bool:
    return any(value.strip().lower().endswith(suffix) for suffix in SUFFIXES)
