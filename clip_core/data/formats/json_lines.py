"""JSON lines: one object a line, `{"file_name": "1.jpg", "text": "a cat"}`; the keys are found as a table's columns."""

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

from clip_core.data.formats.collect import Collector, many_objects
from clip_core.data.formats.columns import choose_columns, split_of
from clip_core.data.formats.json_list import add_entry, as_text
from clip_core.data.formats.json_shapes import CONVERSATIONS, answers_note, count_answers, paired
from clip_core.data.formats.source import Contents, Source
from clip_core.errors import DataError
from clip_core.text import printable

SHAPE = 'JSON lines {"image": "photos/1.jpg", "caption": "a cat"}, one a line'
_SUFFIXES = frozenset({".jsonl", ".ndjson"})
_CHOSEN_BY = 1000  # lines that the keys are
_AT_ONCE = 5_000  # lines read at a time
_SCAN = cast(Any, json.JSONDecoder()).scan_once  # json.loads without looking for white space around the value
_ENDS = frozenset({"\n", "\r\n", ""})


def detect(source: Source) -> str | None:
    start = source.head.lstrip(b"\xef\xbb\xbf \t\r\n")[:2]
    if source.path.suffix.lower() in _SUFFIXES and source.path.is_file():
        is_list = start[:1] == b"[" and not start.startswith(b'["')  # a JSON list under this name
        return None if is_list else f"its name ends in {source.path.suffix}"
    lines = [line for line in source.head_lines if line.strip()][:2]
    return "each line is a JSON object" if len(lines) == 2 and all(_is_object(line) for line in lines) else None


def read(source: Source) -> Contents:
    """Every line that is not blank; the file is read once, and only its pairs are kept.

    A line that is no object is a bad pair.

    Raises:
        DataError: naming the first line if none is an object, or the keys if none can be chosen.
    """
    lines = iter(source.lines("\n"))
    first = _Some.of(list(islice(lines, _CHOSEN_BY)), 1)
    objects = [entry for entry in first.entries if isinstance(entry, dict)]
    if not objects:
        wrong = f", line {first.numbers[0]}: {first.entries[0]}" if first.entries else " holds no pairs"
        raise DataError(f"{source.path}{wrong}; it should be {SHAPE}.")
    names = list(dict.fromkeys(key for entry in objects for key in entry))
    columns = choose_columns(source, names, [[as_text(entry.get(name)) for name in names] for entry in objects])
    named = columns.named(names)
    keys = named["image"], named["caption"], named.get("split")
    collector = Collector(columns.root)
    others, entry, line, some = 0, 1, _CHOSEN_BY + 1, first
    with many_objects():
        while True:
            _add(collector, some, entry, keys)
            if keys[1] in CONVERSATIONS:
                talks = [value.get(keys[1]) for value in some.entries if isinstance(value, dict)]
                others += sum(max(count_answers(turns) - 1, 0) for turns in talks)
            entry += len(some.entries)
            block = list(islice(lines, _AT_ONCE))
            if not block:
                break
            some, line = _Some.of(block, line), line + len(block)
    return collector.contents(source.path, named, [*columns.notes, *answers_note(others)])


class _Some(NamedTuple):
    """Lines that are not blank: an object, or what is wrong with it."""

    numbers: Sequence[int]
    entries: list[dict[str, Any] | str]

    @classmethod
    def of(cls, lines: list[str], number: int) -> "_Some":
        # Lines were not split by str.splitlines: JSON may hold the other characters that it takes for ends of lines.
        try:
            found = [_SCAN(line, 0) for line in lines]
        except (ValueError, RecursionError, StopIteration):  # the last where there is no value
            found = []
        whole = _ENDS.issuperset([line[end:] for line, (_, end) in zip(lines, found, strict=bool(found))])
        entries = [value for value, _ in found]
        if found and whole and set(map(type, entries)) == {dict}:
            return cls(range(number, number + len(lines)), entries)
        kept = [(place, line) for place, line in enumerate(lines, start=number) if line.strip()]
        return cls([place for place, _ in kept], [_object(line) for _, line in kept])


def _add(collector: Collector, some: _Some, entry: int, keys: tuple[str, str, str | None]) -> None:
    image, caption, split = keys
    try:
        images, captions = ([value[key] for value in some.entries] for key in (image, caption))  # type: ignore[index]
        splits = [split_of(value.get(split)) for value in some.entries] if split else None  # type: ignore[union-attr]
    except (KeyError, TypeError):
        images, captions = [], []
    if images and caption not in CONVERSATIONS:
        collector.add_many(entry, images, captions, "line ", some.numbers, splits)
        return
    for place, (number, value) in enumerate(zip(some.numbers, some.entries, strict=True)):
        if isinstance(value, str):
            collector.add(entry + place, None, "", f"line {number}", value)
        else:
            add_entry(collector, value, entry + place, f"line {number}", keys)


def _object(line: str) -> dict[str, Any] | str:
    try:
        value = paired(json.loads(line))
    except (ValueError, RecursionError):
        return "it is not JSON"
    return value if isinstance(value, dict) else f"{printable(line.strip(), 80)} is no object"


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
