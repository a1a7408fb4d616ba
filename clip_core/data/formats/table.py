"""CSV and TSV: the delimiter is the one that splits the lines evenly, the columns are detected by their values."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
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
_AT_ONCE = 5_000  # records read at a time
_MANY_LINES = 20  # of one field: it is looked at whether they are records
_MOST_LINES = 1_000
_EVEN = 0.8  # share of them that must have the same number of fields for a table
_NAMED_EVEN = 0.3  # likewise, of a file that is named as one
_SEPARATOR_LINE = re.compile(r"[\"']?sep=(\\t|[^\"'])[\"']?[\s,;]*", re.IGNORECASE)  # Excel's
# Not the end of a field: its quote is a letter.
_ESCAPED_QUOTE = re.compile(r'\\"(?![,;|\t\r\n]|$)', re.MULTILINE)
_LINE_END = re.compile(r"\r\n|\r|\n")
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
    some = _Records(_head(source.head_lines), dialect).read(_SAMPLE).without_blanks()
    names, _ = _split_header(some)
    has_images = any(_is_image(value) for row in some.rows[:5] for value in row)
    return f"it is a table with {len(names)} columns" if has_images else None


def read(source: Source) -> Contents:
    """Every record that is not blank; the file is read once, and only its pairs are kept.

    Raises:
        DataError: naming the line, or the columns if none can be chosen.
    """
    dialect = find_dialect(source.head_lines, _NAMED_EVEN)
    if dialect is None:
        raise DataError(f"{source.path} has no columns; it should be {SHAPE}, separated by comma, tab, ; or |.")
    records = _Records(source.lines(""), dialect)
    try:
        names, first = _split_header(records.read(_CHOSEN_BY))
        if not first.rows:
            raise DataError(f"{source.path} holds no pairs; it should be {SHAPE}.")
        columns = choose_columns(source, names, first.rows)
        with many_objects():
            collector = _collect(first, records, names, columns, dialect.delimiter)
    except _UnclosedError as error:
        raise DataError(f"{source.path}, line {error}: a quote is never closed; close it, or double it.") from None
    except csv.Error as error:
        raise DataError(f"{source.path}: not a table ({error}); look for a quote that is never closed.") from None
    return collector.contents(source.path, columns.named(names), columns.notes)


def _collect(first: "_Rows", records: "_Records", names: Sequence[str], columns: Columns, delimiter: str) -> Collector:
    collector = Collector(columns.root)
    entry, some = 1, first
    while some.rows:
        if not _add_even(collector, entry, some, columns, len(names)):
            some = some.without_blanks()
            _add_uneven(collector, entry, some, names, columns, delimiter)
        entry += len(some.rows)
        some = records.read(_AT_ONCE)
    return collector


def _add_even(collector: Collector, entry: int, some: "_Rows", columns: Columns, width: int) -> bool:
    """Add rows that all have every column and an image; False for others."""
    if set(map(len, some.rows)) != {width}:
        return False
    images = list(map(str.strip, map(itemgetter(columns.image), some.rows)))
    if not all(images):
        return False
    captions = list(map(itemgetter(columns.caption), some.rows))
    splits = None if columns.split is None else [split_of(row[columns.split]) for row in some.rows]
    collector.add_many(entry, images, captions, "line ", some.lines, splits)
    return True


def _add_uneven(
    collector: Collector, entry: int, some: "_Rows", names: Sequence[str], columns: Columns, delimiter: str
) -> None:
    image_at, caption_at, split_at = columns.image, columns.caption, columns.split
    needed = max(image_at, caption_at) + 1
    for number, (line, row) in enumerate(zip(some.lines, some.rows, strict=True), start=entry):
        problem = None
        if len(row) < needed:
            problem = f"it has {len(row)} columns of {len(names)}"
            row = row + [""] * (needed - len(row))
        caption = row[caption_at]
        if caption_at == len(names) - 1 and len(row) > needed:  # the delimiter in a caption without quotes around
            caption = delimiter.join(row[caption_at:])
        split = split_of(row[split_at]) if split_at is not None and split_at < len(row) else None
        collector.add(number, row[image_at].strip(), caption, f"line {line}", problem, split)


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
        records = _Records(_head(head_lines), dialect).read(_SAMPLE).without_blanks().rows
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


class _Rows(NamedTuple):
    """Records, and the line that each begins at."""

    lines: Sequence[int]
    rows: list[list[str]]

    def without_blanks(self) -> "_Rows":
        kept = [(line, row) for line, row in zip(self.lines, self.rows, strict=True) if any(map(str.strip, row))]
        return _Rows([line for line, _ in kept], [row for _, row in kept])


class _Records:
    """The records of a table, read some at a time; blank lines are records without a field."""

    def __init__(self, lines: Iterable[str], dialect: Dialect) -> None:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
        wanted = islice(lines, dialect.first - 1, None)
        self._reader = csv.reader(
            (_PLAIN_BACKSLASH.sub(r"\\\\", line) for line in wanted) if dialect.escaped else wanted,
            delimiter=dialect.delimiter,
            quoting=quoting,
            skipinitialspace=dialect.spaced,
            escapechar="\\" if dialect.escaped else None,
        )
        self._line = self._first = dialect.first
        self._delimiter = dialect.delimiter

    def read(self, count: int) -> _Rows:
        """The next records, none at the end.

        Raises:
            csv.Error: as the module does.
            _UnclosedError: if a field holds too many lines.
        """
        rows = list(islice(self._reader, count))
        start, self._line = self._line, self._reader.line_num + self._first
        if self._line - start == len(rows):
            return _Rows(range(start, self._line), rows)
        lines = []
        for row in rows:
            lines.append(start)
            for value in row:
                if "\n" in value or "\r" in value:
                    inside = _LINE_END.split(value)
                    if len(inside) > _MANY_LINES and self._are_records(inside):
                        raise _UnclosedError(lines[-1])
                    start += len(inside) - 1
            start += 1
        return _Rows(lines, rows)

    def _are_records(self, lines: Sequence[str]) -> bool:
        """Whether the lines of a field are those of the table, swallowed by a quote that is never closed."""
        named = sum(any(map(_is_image, line.split(self._delimiter))) for line in lines)
        return len(lines) > _MOST_LINES or named > len(lines) / 2


def _split_header(some: _Rows) -> tuple[list[str], _Rows]:
    """The names of the columns and the rest; without a header the columns are called 1, 2, ..."""
    lines, rows = some.without_blanks()
    first = rows[0] if rows else []
    known = {name.strip().casefold().replace(" ", "_") for name in first} & KNOWN_NAMES
    if first and (known or not any(_is_image(value) for value in first)):
        return [name.strip() for name in first], _Rows(lines[1:], rows[1:])
    return [str(number) for number in range(1, len(first) + 1)], _Rows(lines, rows)


def _is_image(value: str) -> bool:
    return is_url(value) or any(value.strip().lower().endswith(suffix) for suffix in SUFFIXES)
