"""JSON lines: one object a line, `{"file_name": "1.jpg", "text": "a cat"}`; the keys are found as a table's columns."""

import json
from typing import Any

from clip_core.data.formats.collect import Collector, shown
from clip_core.data.formats.columns import choose_columns
from clip_core.data.formats.source import Contents, Source
from clip_core.errors import DataError

SHAPE = 'JSON lines {"image": "photos/1.jpg", "caption": "a cat"}, one a line'
_SUFFIXES = frozenset({".jsonl", ".ndjson"})


def detect(source: Source) -> str | None:
    if source.path.suffix.lower() in _SUFFIXES and source.path.is_file():
        return f"its name ends in {source.path.suffix}"
    lines = [line for line in source.head_lines if line.strip()][:2]
    return "each line is a JSON object" if len(lines) == 2 and all(_is_object(line) for line in lines) else None


def read(source: Source) -> Contents:
    """Every line that is not blank.

    Raises:
        DataError: naming the line that is no object, or the keys if none can be chosen.
    """
    # Not splitlines: JSON may hold the other characters that it takes for ends of lines.
    numbered = [(number, line) for number, line in enumerate(source.text.split("\n"), start=1) if line.strip()]
    entries = [(number, _object(source, number, line)) for number, line in numbered]
    if not entries:
        raise DataError(f"{source.path} holds no pairs; it should be {SHAPE}.")
    names = list(dict.fromkeys(key for _, entry in entries for key in entry))
    columns = choose_columns(source, names, [[entry.get(name, "") for name in names] for _, entry in entries[:1000]])
    image, caption = names[columns.image], names[columns.caption]
    collector = Collector(columns.root)
    for number, entry in entries:
        problem = None if {image, caption} <= entry.keys() else f"it has no {image} and {caption}"
        collector.add(number, entry.get(image), entry.get(caption), f"line {number}", problem)
    return Contents(collector.pairs, columns.root, {"image": image, "caption": caption})


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
