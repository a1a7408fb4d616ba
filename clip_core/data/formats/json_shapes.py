"""The shapes that pairs have in JSON files, each made a flat list of objects.

[{...}, ...]                       as it is; an entry may also be [image, caption]
{"data": [...]}                    the only list in it; several lists that are called train, val and test
{"1.jpg": "a cat", ...}            image to caption, captions, or an object with one
{"image": [...], "caption": [...]} columns, as pandas writes them (the lists may be objects by row number)
{"images": [{"sentences": ...}]}   Karpathy's splits (Karpathy & Fei-Fei 2015)
[{"image", "conversations"}]       LLaVA (Liu et al. 2023): the first answer is the caption
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_core.data.formats.collect import shown
from clip_core.data.formats.columns import CAPTION_NAMES, IMAGE_NAMES, KNOWN_NAMES, split_of
from clip_core.data.image_files import SUFFIXES
from clip_core.errors import DataError

CONVERSATIONS = ("conversations", "messages")
_ANSWERS = ("gpt", "assistant", "model", "bot")


@dataclass(frozen=True)
class Entries:
    """A flat list: what is no object is a bad pair."""

    entries: list[Any]
    notes: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # of the entries, where their number does not say it
    spelt: Mapping[str, str] = field(default_factory=dict)  # what a key that was made here is called in the file


def entries_of(path: Path, value: Any) -> Entries:
    """The entries of a file.

    Raises:
        DataError: if it has none, or several lists.
    """
    if isinstance(value, dict):
        return _in_object(path, value)
    if not isinstance(value, list):
        raise DataError(f"{path} is not a list but {shown(value)}; correct it.")
    entries = [paired(entry) for entry in value]
    return Entries(entries, conversation_notes(entries))


def first_answer(turns: object) -> object:
    """The first answer of a conversation, without the place of the image in it; None if there is none."""
    for turn in turns if isinstance(turns, list) else []:
        if _is_answer(turn):
            said = turn.get("value", turn.get("content"))
            if isinstance(said, list):  # parts, of which some are texts
                said = next((part.get("text") for part in said if isinstance(part, dict) and part.get("text")), None)
            return said.replace("<image>", " ").strip() if isinstance(said, str) else said
    return None


def count_answers(turns: object) -> int:
    return sum(map(_is_answer, turns)) if isinstance(turns, list) else 0


def answers_note(others: int) -> list[str]:
    """That only first answers are used, where there are others."""
    are = "1 other answer is" if others == 1 else f"{others:,} other answers are"
    return [f"of each conversation the first answer is the caption; {are} not used."] if others else []


def conversation_notes(entries: list[Any]) -> list[str]:
    """That only the first answers are used, where there are conversations."""
    talks = [entry[key] for entry in entries if isinstance(entry, dict) for key in CONVERSATIONS if key in entry]
    return answers_note(sum(max(count_answers(turns) - 1, 0) for turns in talks)) if talks else []


def _is_answer(turn: object) -> bool:
    return isinstance(turn, dict) and (turn.get("from") or turn.get("role")) in _ANSWERS


def paired(entry: Any) -> Any:
    """[image, caption], or the other way round where only the second is called like an image, as an object."""
    if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
        swapped = _is_image(entry[1]) and not _is_image(entry[0])
        return {"image": entry[swapped], "caption": entry[not swapped]}
    return entry


def _is_image(value: object) -> bool:
    return isinstance(value, str) and Path(value).suffix.lower() in SUFFIXES


def _in_object(path: Path, value: dict[str, Any]) -> Entries:
    images = value.get("images")
    if isinstance(images, list) and any(isinstance(item, dict) and "sentences" in item for item in images):
        return Entries([_karpathy(item) for item in images], spelt={"image": "filename", "caption": "sentences.raw"})
    if _is_pair(value):
        return Entries([value])
    columns = _by_column(path, value)
    if columns is not None:
        return Entries(columns)
    if any(Path(key).suffix.lower() in SUFFIXES for key in value) or all(_is_caption(item) for item in value.values()):
        return _by_name(value)
    lists = {key: item for key, item in value.items() if isinstance(item, list) and any(map(_is_entry, item))}
    if len(lists) > 1 and all(split_of(key) for key in lists):
        entries = [
            {**paired(entry), "split": key} if isinstance(paired(entry), dict) else entry
            for key, listed in lists.items()
            for entry in listed
        ]
        places = [f"{key}, entry {number}" for key, listed in lists.items() for number in range(1, len(listed) + 1)]
        return Entries(entries, conversation_notes(entries), places)
    if len(lists) > 1:
        raise DataError(f"{path} holds several lists, {', '.join(map(shown, lists))}; leave one in it.")
    if lists:
        ((key, listed),) = lists.items()
        inner = entries_of(path, listed)
        return Entries(inner.entries, inner.notes, [f"{key}, entry {n}" for n in range(1, len(listed) + 1)])
    nested = [item for item in value.values() if isinstance(item, dict)]
    if len(nested) == 1 and not all(_is_caption(item) for item in value.values()):
        return _in_object(path, nested[0])
    return _by_name(value)


def _karpathy(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    folder, name = item.get("filepath"), item.get("filename")
    image = f"{folder}/{name}" if isinstance(folder, str) and folder and isinstance(name, str) else name
    found = {"image": image, "split": item.get("split")}
    return found | ({"caption": item["sentences"]} if "sentences" in item else {})


def _is_pair(value: dict[str, Any]) -> bool:
    """Whether an object is one entry itself: an image and a caption by their names, both texts."""
    texts = {key.strip().casefold() for key, item in value.items() if isinstance(item, str)}
    return bool(texts & {*IMAGE_NAMES}) and bool(texts & {*CAPTION_NAMES})


def _by_column(path: Path, value: dict[str, Any]) -> list[Any] | None:
    """The rows of columns: lists of one length, or objects with the same keys; None if it is nothing like that.

    Raises:
        DataError: if the lists differ in length.
    """
    if not {name.casefold() for name in value} & KNOWN_NAMES or len(value) < 2:
        return None
    columns = list(value.values())
    rows: list[list[Any]] | None
    if all(isinstance(column, list) and not any(map(_is_entry, column)) for column in columns):
        if len({len(column) for column in columns}) > 1:
            lengths = ", ".join(f"{len(column):,} of {shown(name)}" for name, column in value.items())
            raise DataError(f"{path} holds columns of different lengths, {lengths}; correct it.")
        rows = [list(row) for row in zip(*columns, strict=True)]
    elif all(isinstance(column, dict) for column in columns):
        keys = list(columns[0])
        rows = [[column.get(key) for column in columns] for key in keys]
    else:
        return None
    return [dict(zip(value, row, strict=True)) for row in rows] if rows else None


def _by_name(value: dict[str, Any]) -> Entries:
    entries: list[Any] = [{"image": name, "caption": caption} for name, caption in value.items()]
    spelt = {"image": "the names", "caption": "their values"}
    return Entries(entries, places=[shown(name) for name in value], spelt=spelt)


def _is_entry(item: Any) -> bool:
    return isinstance(item, dict) or (isinstance(item, list) and len(item) == 2 and isinstance(item[0], str))


def _is_caption(item: Any) -> bool:
    """Whether a value of an object may be a caption, or several."""
    if isinstance(item, dict):
        return any(isinstance(item.get(key), str) for key in ("caption", "text", "raw"))
    return isinstance(item, str) or (isinstance(item, list) and all(isinstance(text, str) for text in item))
