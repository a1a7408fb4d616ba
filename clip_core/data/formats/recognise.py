"""The table of formats, and which of them a path is in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from clip_core.data.formats import class_folders, coco, flickr, json_lines, json_list, table, text_beside, webdataset
from clip_core.data.formats.source import Contents, Source, Wishes
from clip_core.data.pairs import Pair
from clip_core.errors import DataError


class Format(NamedTuple):
    """How one kind of data set is told from the others, and read.

    `recognise` says why a path is of this kind, or None; `shape` is what it looks like, for messages.
    """

    shape: str
    recognise: Callable[[Source], str | None]
    read: Callable[[Source], Contents]


# By the name that --format takes; the first that recognises a path reads it.
FORMATS: dict[str, Format] = {
    "webdataset": Format(webdataset.SHAPE, webdataset.recognise, webdataset.read),
    "flickr": Format(flickr.SHAPE, flickr.recognise, flickr.read),
    "coco": Format(coco.SHAPE, coco.recognise, coco.read),
    "jsonl": Format(json_lines.SHAPE, json_lines.recognise, json_lines.read),
    "json": Format(json_list.SHAPE, json_list.recognise, json_list.read),
    "csv": Format(table.SHAPE, table.recognise, table.read),
    "text-beside": Format(text_beside.SHAPE, text_beside.recognise, text_beside.read),
    "class-folders": Format(class_folders.SHAPE, class_folders.recognise, class_folders.read),
}

_LISTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
_NO_WISHES = Wishes()
_METADATA = ("metadata.jsonl", "metadata.csv")  # the list of a folder, as Hugging Face's ImageFolder names it


@dataclass(frozen=True)
class Reading:
    """A data set that was recognised and read; nothing of it is decoded yet."""

    path: Path
    format: str
    why: str
    root: Path
    columns: dict[str, str]
    pairs: list[Pair]


def is_there(path: Path) -> bool:
    """Whether a path, or what a pattern of shards names, exists."""
    try:
        return path.exists() or bool(webdataset.find_shards(path))
    except DataError:  # one of the shards is missing
        return False


def recognise(path: Path, wishes: Wishes = _NO_WISHES) -> tuple[Source, str, str]:
    """What to read, the name of its format, and why it is that; no more is looked at than this needs.

    Raises:
        DataError: naming what was looked for, if nothing is recognised.
    """
    if not path.exists() and not webdataset.find_shards(path):
        raise DataError(f"no pair list at {path}; correct the path.")
    inner = next((path / name for name in _METADATA if (path / name).is_file()), path)
    source = Source(inner, wishes)
    name, why = (wishes.format, "--format says so") if wishes.format else _recognise(source)
    if name not in FORMATS:
        raise DataError(f"--format {name} is not known; it may be {', '.join(FORMATS)}.")
    _check_kind(source, name)
    return source, name, why


def read_data(path: Path, wishes: Wishes = _NO_WISHES) -> Reading:
    """Recognise what a path holds, and read its pairs.

    Args:
        path: a list, a folder, or a pattern of shards.
        wishes: what the user said about it.
    Raises:
        DataError: naming what was looked for, if nothing is recognised; else as the format's reader says.
    """
    source, name, why = recognise(path, wishes)
    contents = FORMATS[name].read(source)
    return Reading(source.path, name, why, contents.root, contents.columns, contents.pairs)


def _recognise(source: Source) -> tuple[str, str]:
    for name, known in FORMATS.items():
        why = known.recognise(source)
        if why is not None:
            return name, why
    if source.path.is_dir():
        lists = sorted(item for item in source.path.iterdir() if item.suffix.lower() in _LISTS)[:5]
        if lists:
            named = " or ".join(str(item) for item in lists)
            raise DataError(f"{source.path} is a folder and no data set by itself; name a list in it, as {named}.")
    shapes = "; ".join(known.shape for known in FORMATS.values())
    raise DataError(f"{source.path} is in no format that is known; looked for {shapes}; see --format.")


def _check_kind(source: Source, name: str) -> None:
    """Refuse a folder where --format wants a file, and a file where it wants a folder."""
    wants_folder = name in ("text-beside", "class-folders")
    fits = source.path.is_dir() if wants_folder else source.path.is_file()  # a named pipe would be waited for
    if name != "webdataset" and not fits:
        what = "a folder" if wants_folder else "a file"
        raise DataError(f"{source.path} is not {what}, which --format {name} needs; it is for {FORMATS[name].shape}.")
