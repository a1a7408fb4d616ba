"""JSON lines: one object a line, `{"file_name": "1.jpg", "text": "a cat"}`; the keys are found as a table's columns."""

import json
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from clip_core.data.formats.collect import Collector, many_objects, shown
from clip_core.data.formats.columns import choose_columns
from clip_core.data.formats.json_list import add_entry, as_text
from clip_core.data.formats.json_shapes import CONVERSATIONS, answers_note, count_answers
from clip_core.data.formats.source import Contents, Source
from clip_core.errors import DataError

SHAPE = 'JSON lines {"image": "photos/1.jpg", "caption": "a cat"}, one a line'
_SUFFIXES = frozenset({".jsonl", ".ndjson"})
_CHOSEN_BY = 1000  # lines that the keys are


def detect(source: Source) -> str | None:
    if source.path.suffix.lower() in _SUFFIXES and source.path.is_file():
        return f"its name ends in {source.path.suffix}"
    lines = [line for line in source.head_lines if line.strip()][:2]
    return "each line is a JSON object" if len(lines) == 2 and all(_is_object(line) for line in lines) else None


def read(source: Source) -> Contents:
    """Every line that is not blank; the file is read once, and only its pairs are kept.

    Raises:
        DataError: naming the line that is no object, or the keys if none can be chosen.
    """
    entries = _entries(source)
    first = list(islice(entries, _CHOSEN_BY))
    if not first:
        raise DataError(f"{source.path} holds no pairs; it should be {SHAPE}.")
    names = list(dict.fromkeys(key for _, entry in first for key in entry))
    columns = choose_columns(source, names, [[as_text(entry.get(name)) for name in names] for _, entry in first])
    named = columns.named(names)
    keys = named["image"], named["caption"], named.get("split")
    collector = Collector(columns.root)
    conversation = keys[1] if keys[1] in CONVERSATIONS else None
    others = 0
    with many_objects():
        for number, entry in chain(first, entries):
            add_entry(collector, entry, number, f"line {number}", keys)
            others += max(count_answers(entry.get(conversation)) - 1, 0) if conversation else 0
    notes = [*columns.notes, *([answers_note(others)] if conversation else [])]
    return collector.contents(source.path, named, notes)


def _entries(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of each line, with the line's number."""
    # Not splitlines: JSON may hold the other characters that it takes for ends of lines.
    for number, line in enumerate(source.lines("\n"), start=1):
        if line.strip():
            yield number, _object(source, number, line)


def _object(source: Source, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{source.path}, line {number}: not JSON; it should be {SHAPE}.") from None
    if not isinstance(value, dict):
        raise DataError(f"{source.path}, line {number}: {shown(value)} is not an object; it should be {SHAPE}.")
    return value


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
