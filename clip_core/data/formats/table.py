"""CSV and TSV: the delimiter is the one that splits the lines evenly, the columns are detected by their values."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Literal, NamedTuple

from clip_core.data.formats.collect import Collector, many_objects
from clip_core.data.formats.columns import KNOWN_NAMES, Columns, choose_columns, split_of
from clip_core.data.formats.image_root import is_url
from clip_core.data.formats.source import Contents, Source
from clip_core.data.image_files import SUFFIXES
from clip_core.errors import DataError

SHAPE = "a CSV or TSV file with a column of images and one of captions"
_SUFFIXES = frozenset({".csv", ".tsv", ".tab", ".psv"})
_DELIMITERS = (",", "\t", ";", "|")
_SAMPLE = 100  # records that the delimiter is detected by
_CHOSEN_BY = 1000  # records that the columns are
_MOST_LINES = 20  # of one field
_EVEN = 0.8  # share of them that must have the same number of fields for a table
_NAMED_EVEN = 0.3  # likewise, of a file that is named as one
_SEPARATOR_LINE = re.compile(r"[\"']?sep=(\\t|[^\"'])[\"']?[\s,;]*", re.IGNORECASE)  # Excel's
# Not the end of a field: its quote is a letter.
_ESCAPED_QUOTE = re.compile(r'\\"(?![,;|\t\r\n]|$)', re.MULTILINE)
_PLAIN_BACKSLASH = re.compile(r'\\(?!")')

csv.field_size_limit(10_000_000)  # of a caption; the module's own default is 131,072


class Dialect(NamedTuple):
    delimiter: str
    quoted: bool
    spaced: bool  # a space after the delimiter belongs to neither field
    escaped: bool = False  # quotes inside of quotes have a backslash before them
    first: int = 1  # line of the first record


def detect(source: Source) -> str | None:
    if source.path.suffix.lower() in _SUFFIXES and source.path.is_file():
        return f"its name ends in {source.path.suffix}"
    dialect = find_dialect(source.head_lines)
    if dialect is None:
        return None
    names, _ = _split_header(list(islice(_records(_head(source.head_lines), dialect), _SAMPLE)))
    rows = [row for _, row in islice(_records(_head(source.head_lines), dialect), _SAMPLE)]
    has_images = any(_is_image(value) for row in rows[:5] for value in row)
    return f"it is a table with {len(names)} columns" if has_images else None


def read(source: Source) -> Contents:
    """Every record that is not blank; the file is read once, and only its pairs are kept.

    Raises:
        DataError: naming the line, or the columns if none can be chosen.
    """
    dialect = find_dialect(source.head_lines, _NAMED_EVEN)
    if dialect is None:
        raise DataError(f"{source.path} has no columns; it should be {SHAPE}, separated by comma, tab, ; or |.")
    records = _records(source.lines(""), dialect)
    try:
        names, rows = _split_header(list(islice(records, _CHOSEN_BY)))
        if not rows:
            raise DataError(f"{source.path} holds no pairs; it should be {SHAPE}.")
        columns = choose_columns(source, names, [row for _, row in rows])
        with many_objects():
            collector = _collect(chain(rows, records), names, columns, dialect.delimiter)
    except _UnclosedError as error:
        raise DataError(f"{source.path}, line {error}: a quote is never closed; close it, or double it.") from None
    except csv.Error as error:
        raise DataError(f"{source.path}: not a table ({error}); look for a quote that is never closed.") from None
    return collector.contents(source.path, columns.named(names), columns.notes)


def _collect(
    rows: Iterable[tuple[int, list[str]]], names: Sequence[str], columns: Columns, delimiter: str
) -> Collector:
    collector = Collector(columns.root)
    image_at, caption_at, split_at = columns.image, columns.caption, columns.split
    needed = max(image_at, caption_at) + 1
    caption_is_last = caption_at == len(names) - 1
    for entry, (line, row) in enumerate(rows, start=1):
        problem = None
        if len(row) < needed:
            problem = f"it has {len(row)} columns of {len(names)}"
            row = row + [""] * (needed - len(row))
        caption = row[caption_at]
        if caption_is_last and len(row) > needed:  # a last caption with the delimiter in it, and no quotes around
            caption = delimiter.join(row[caption_at:])
        split = split_of(row[split_at]) if split_at is not None and split_at < len(row) else None
        collector.add(entry, row[image_at].strip(), caption, f"line {line}", problem, split)
    return collector


def find_dialect(head_lines: Sequence[str], least: float = _EVEN) -> Dialect | None:
    """The delimiter that gives most records the same number of fields, two at least; None if none does.

    A quote that is never closed swallows the rest: where that splits the lines less evenly, quotes are plain letters.
    """
    declared = _SEPARATOR_LINE.fullmatch(head_lines[0]) if head_lines else None
    delimiters = (declared[1].replace("\\t", "\t"),) if declared else _DELIMITERS
    first = 2 if declared else 1
    head = "\n".join(head_lines)
    best: tuple[float, Dialect] | None = None
    for delimiter in delimiters:
        spaced = f'{delimiter} "' in head
        kinds = [Dialect(delimiter, True, spaced, False, first), Dialect(delimiter, False, spaced, False, first)]
        if _ESCAPED_QUOTE.search(head):
            kinds.insert(0, Dialect(delimiter, True, spaced, True, first))
        for dialect in kinds:
            evenness = _evenness(head_lines, dialect)
            if evenness >= (0.0 if declared else least) and (best is None or evenness > best[0]):
                best = evenness, dialect
    return best and best[1]


def _evenness(head_lines: Sequence[str], dialect: Dialect) -> float:
    """Share of the records with as many fields as the first; more than that, as unquoted captions make, count less."""
    try:
        records = [row for _, row in islice(_records(_head(head_lines), dialect), _SAMPLE)]
    except (csv.Error, _UnclosedError):
        return 0.0
    if not records or len(records[0]) < 2:
        return 0.0
    wanted = len(records[0])
    return sum(1.0 if len(row) == wanted else 0.9 for row in records if len(row) >= wanted) / len(records)


class _UnclosedError(Exception):
    """A field holds so many lines that its quote was never closed; its line."""


def _head(head_lines: Sequence[str]) -> Iterator[str]:
    return (f"{line}\n" for line in head_lines)


def _records(lines: Iterable[str], dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not blank, with the line that it begins at."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    wanted = islice(lines, dialect.first - 1, None)
    reader = csv.reader(
        (_PLAIN_BACKSLASH.sub(r"\\\\", line) for line in wanted) if dialect.escaped else wanted,
        delimiter=dialect.delimiter,
        quoting=quoting,
        skipinitialspace=dialect.spaced,
        escapechar="\\" if dialect.escaped else None,
    )
    line = dialect.first
    for row in reader:
        if any(map(str.strip, row)):
            after = reader.line_num + dialect.first
            if after - line > _MOST_LINES and any(value.count("\n") > _MOST_LINES for value in row):
                raise _UnclosedError(line)
            yield line, row
        line = reader.line_num + dialect.first


def _split_header(records: Sequence[tuple[int, list[str]]]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns and the rest; without a header the columns are called 1, 2, ..."""
    first = records[0][1] if records else []
    known = {name.strip().casefold().replace(" ", "_") for name in first} & KNOWN_NAMES
    if first and (known or not any(_is_image(value) for value in first)):
        return [name.strip() for name in first], list(records[1:])
    return [str(number) for number in range(1, len(first) + 1)], list(records)


def _is_image(value: str) -> bool:
    return is_url(value) or any(value.strip().lower().endswith(suffix) for suffix in SUFFIXES)
