"""The table of formats, and which of them a path is in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from clip_core.config import streamed_pattern
from clip_core.data.formats import (
    class_folders,
    coco,
    flickr,
    image_folder,
    json_lines,
    json_list,
    parquet,
    sidecar_captions,
    table,
    webdataset,
)
from clip_core.data.formats.folder import LIST_SUFFIXES, METADATA, hub_snapshot
from clip_core.data.formats.source import Contents, ReadOptions, Source
from clip_core.data.formats.unsupported import not_found, what_bytes_say, what_it_is
from clip_core.data.pairs import Pair
from clip_core.data.progress import Progress, no_progress
from clip_core.errors import DataError


class Format(NamedTuple):
    """How one format is detected and read.

    `detect` returns why a path is of this format, or None; `shape` describes it in messages.
    """

    shape: str
    detect: Callable[[Source], str | None]
    read: Callable[[Source], Contents]


# By the name that --format takes; the first that detects a path reads it.
FORMATS: dict[str, Format] = {
    "imagefolder": Format(image_folder.SHAPE, image_folder.detect, image_folder.read),
    "webdataset": Format(webdataset.SHAPE, webdataset.detect, webdataset.read),
    "parquet": Format(parquet.SHAPE, parquet.detect, parquet.read),
    "flickr": Format(flickr.SHAPE, flickr.detect, flickr.read),
    "jsonl": Format(json_lines.SHAPE, json_lines.detect, json_lines.read),
    "coco": Format(coco.SHAPE, coco.detect, coco.read),
    "json": Format(json_list.SHAPE, json_list.detect, json_list.read),
    "csv": Format(table.SHAPE, table.detect, table.read),
    "sidecar": Format(sidecar_captions.SHAPE, sidecar_captions.detect, sidecar_captions.read),
    "class-folders": Format(class_folders.SHAPE, class_folders.detect, class_folders.read),
}

_DEFAULTS = ReadOptions()


@dataclass(frozen=True)
class Reading:
    """A data set that was read; no image is decoded yet."""

    path: Path
    format: str
    why: str
    root: Path
    columns: dict[str, str]
    pairs: Sequence[Pair]
    notes: list[str]
    not_read: dict[str, int]


def is_there(path: Path) -> bool:
    """Whether a path, or what a pattern of shards names, exists."""
    try:
        return path.exists() or bool(webdataset.find_shards(path))
    except DataError:  # one of the shards is missing
        return False


def detect(path: Path, options: ReadOptions = _DEFAULTS, progress: Progress = no_progress) -> tuple[Source, str, str]:
    """What to read, the name of its format, and why.

    Raises:
        DataError: saying what the path is, if it is in no format.
    """
    if not path.exists() and (streamed_pattern(path) is not None or not webdataset.find_shards(path)):
        raise DataError(not_found(path))
    inner = hub_snapshot(path)
    if options.format in ("csv", "jsonl"):  # of a folder: its metadata
        inner = next((inner / name for name in METADATA if (inner / name).is_file()), inner)
    source = Source(inner, options, progress)
    if options.format is not None:
        if options.format not in FORMATS:
            raise DataError(f"--format {options.format} is unknown; it may be {', '.join(FORMATS)}.")
        _check_kind(source, options.format)
    _check_content(source)
    name, why = (options.format, "given by --format") if options.format else _detect(source)
    return source, name, why


def read_data(path: Path, options: ReadOptions = _DEFAULTS, progress: Progress = no_progress) -> Reading:
    """Detect the format of a path, and read its pairs.

    Args:
        path: a list, a folder, or a pattern of shards.
        options: the user's options.
        progress: called with the bytes read of a list so far, and all.
    Raises:
        DataError: saying what the path is, if it is in no format; else as the format's reader says.
    """
    source, name, why = detect(path, options, progress)
    contents = FORMATS[name].read(source)
    return Reading(
        source.path, name, why, contents.root, contents.columns, contents.pairs, contents.notes, contents.not_read
    )


def _detect(source: Source) -> tuple[str, str]:
    for name, known in FORMATS.items():
        why = known.detect(source)
        if why is not None:
            return name, why
    raise DataError(what_it_is(source))


def _check_content(source: Source) -> None:
    """Refuse a file without any text, and a list that is something else by its first bytes."""
    path, head = source.path, source.head
    if not path.is_file():
        return
    if path.stat().st_size == len(head) and not head.strip(b"\xef\xbb\xbf\0 \t\r\n"):
        raise DataError(f"{path} is empty; name a list with images and captions.")
    mistaken = what_bytes_say(source) if path.suffix.lower() in LIST_SUFFIXES else None
    if mistaken is not None:
        raise DataError(mistaken)


def _check_kind(source: Source, name: str) -> None:
    """Refuse a folder where --format wants a file, and a file where it wants a folder."""
    wants_folder = name in ("imagefolder", "sidecar", "class-folders")
    fits = source.path.is_dir() if wants_folder else source.path.is_file()  # a named pipe would be waited for
    if name not in ("webdataset", "parquet") and not fits:
        what = "a folder" if wants_folder else "a file"
        raise DataError(f"{source.path} is not {what}, which --format {name} needs; it is for {FORMATS[name].shape}.")
