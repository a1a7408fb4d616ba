"""JSON: a list of entries, however it is wrapped; `json_shapes` has the shapes.

`[{"image": "photos/1.jpg", "caption": "a cat"}, ...]` is the plain one; a caption may be a list of captions.
"""

from itertools import islice
from typing import Any

from clip_core.data.formats.collect import Collector, many_objects, shown
from clip_core.data.formats.columns import choose_columns, split_of
from clip_core.data.formats.json_shapes import CONVERSATIONS, Entries, entries_of, first_answer
from clip_core.data.formats.source import Contents, Source
from clip_core.errors import DataError

SHAPE = 'a JSON list [{"image": "photos/1.jpg", "caption": "a cat"}, ...]'

_CHOSEN_BY = 1000  # entries that the keys are


def detect(source: Source) -> str | None:
    if source.head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return "it is a JSON list"
    return "its name ends in .json" if source.path.suffix.lower() == ".json" and source.path.is_file() else None


def read(source: Source) -> Contents:
    """Every entry, in the list's order; an entry without an image or a caption is a bad pair.

    Raises:
        DataError: naming the file, and the keys if none can be chosen.
    """
    try:
        found = entries_of(source.path, source.json)
        if not any(isinstance(entry, dict) for entry in found.entries):
            raise DataError(f"{source.path} holds no pairs; correct it.")
        return collect(source, found)
    except DataError as error:
        said = str(error)
        if not said.endswith(("correct it.", "correct the list.")):
            raise
        raise DataError(f"{said.rpartition(';')[0]}; it should be {SHAPE}.") from None


def collect(source: Source, found: Entries) -> Contents:
    """Pairs of entries that are objects, by the keys that are found as a table's columns.

    Raises:
        DataError: naming the keys, if none can be chosen.
    """
    objects = [entry for entry in islice(found.entries, _CHOSEN_BY) if isinstance(entry, dict)]
    names = list(dict.fromkeys(key for entry in objects for key in entry))
    columns = choose_columns(source, names, [[as_text(entry.get(name)) for name in names] for entry in objects])
    image, caption = names[columns.image], names[columns.caption]
    split = None if columns.split is None else names[columns.split]
    collector = Collector(columns.root)
    notes = [*found.notes, *columns.notes]
    with many_objects():
        for number, entry in enumerate(found.entries, start=1):
            where = found.places[number - 1] if found.places else ""
            add_entry(collector, entry, number, where, (image, caption, split))
    named = {key: found.spelt.get(name, name) for key, name in columns.named(names).items()}
    return collector.contents(source.path, named, notes)


def add_entry(collector: Collector, entry: Any, number: int, where: str, keys: tuple[str, str, str | None]) -> None:
    """One entry, whatever it is."""
    image, caption, split = keys
    if not isinstance(entry, dict):
        collector.add(number, None, "", where, f"{shown(entry)} has no {image} and {caption}")
        return
    lost = next((key for key in (image, caption) if key not in entry), None)
    problem = f"it has no {lost}" if lost else None
    captions = entry.get(caption)
    if caption in CONVERSATIONS:
        captions = first_answer(captions)
    part = split_of(entry.get(split)) if split else None
    collector.add(number, entry.get(image), captions, where, problem, part)


def as_text(value: object) -> object:
    """A value as the choice of columns looks at it."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return first_answer(value) or next((text for text in value[0].values() if isinstance(text, str)), "")
    return "" if value is None else value
