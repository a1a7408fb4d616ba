"""Hugging Face's ImageFolder: images with a metadata.csv, .jsonl or .parquet beside or above them, maybe in splits.

train/metadata.csv names the images below train/, and its pairs are of that split. One at the top may name
train/1.jpg.
Source: huggingface.co/docs/datasets/image_dataset.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from clip_core.data.formats import json_lines, parquet, table
from clip_core.data.formats.folder import METADATA, SPLITS, Folder
from clip_core.data.formats.source import Contents, Source
from clip_core.data.listed import ListedPairs
from clip_core.errors import DataError

SHAPE = "a folder of images with a metadata.csv, metadata.jsonl or metadata.parquet, or one in each of train, val, test"


def detect(source: Source) -> str | None:
    if not source.path.is_dir():
        return None
    found = source.folder.metadata
    top = next((file for file in found if file.parent == source.path), None)
    if top is not None:
        return f"it holds {top.name}"
    if source.folder.others[".tar"] and not source.folder.images:
        return None
    names = " and ".join(str(file.relative_to(source.path)) for file in found[:2])
    return f"it holds {names}{' and more' if len(found) > 2 else ''}" if found else None


def read(source: Source) -> Contents:
    """The pairs of every metadata file; names start from the folder.

    Raises:
        DataError: if there is no such file, or as the reader of it says.
    """
    folder = source.folder
    files = _first_of_each_folder(folder.metadata)
    if not files:
        raise DataError(f"{source.path} holds no metadata.csv, .jsonl or .parquet; it should be {SHAPE}.")
    pairs = ListedPairs(source.path)
    notes: list[str] = []
    not_read: Counter[str] = Counter()
    columns: dict[str, str] = {}
    for file in files:
        contents = _reader(file)(replace(source, path=file))
        prefix = file.parent.relative_to(source.path)
        below = "" if prefix == Path() else f"{prefix.as_posix()}/"
        assert isinstance(contents.pairs, ListedPairs)  # of a list
        pairs.join(contents.pairs.placed(source.path, below, f"{below}{file.name}, ", pairs[-1].entry if pairs else 0))
        columns = columns or contents.columns
        said = "" if len(files) == 1 else f"{prefix / file.name}: "
        notes += [said + note for note in contents.notes]
        not_read.update(contents.not_read)
    pairs, said_of_splits = _with_splits(pairs)
    beside = _unnamed(folder, pairs)
    left = folder.not_read(frozenset(files), len(folder.captions))
    if beside:
        left[f"images that {files[0].name} does not name"] = beside
    links = [note for note in folder.notes() if not note.startswith("splits")]
    return Contents(pairs, source.path, columns, [*links, *said_of_splits, *notes], dict(not_read) | left)


def _first_of_each_folder(files: list[Path]) -> list[Path]:
    """One metadata file a folder, jsonl before csv before parquet; the others are counted as not read."""
    best: dict[Path, Path] = {}
    for file in sorted(files, key=lambda file: METADATA.index(file.name.lower())):
        best.setdefault(file.parent, file)
    return sorted(best.values())


def _reader(file: Path) -> Callable[[Source], Contents]:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return parquet.read
    return table.read if suffix == ".csv" else json_lines.read


def _with_splits(pairs: ListedPairs) -> tuple[ListedPairs, list[str]]:
    """Pairs with the split that their images' folders are called by, if all are, and a note on it."""
    known: dict[str, str | None] = {}
    splits: list[str | None] = []
    for name in pairs.names():
        folder = name[: name.rfind("/") + 1]
        if folder not in known:
            known[folder] = _split(folder)
        splits.append(known[folder])
    if any(pairs.splits()) or not all(splits):
        return pairs, []
    counts = ", ".join(f"{name} ({count:,} pairs)" for name, count in Counter(splits).items())
    return pairs.with_splits(splits), [f"splits by the folders' names: {counts}"]


def _split(folder: str) -> str | None:
    return next((SPLITS[part.casefold()] for part in folder.split("/")[:-1] if part.casefold() in SPLITS), None)


def _unnamed(folder: Folder, pairs: ListedPairs) -> int:
    """How many images of the folder are in no pair."""
    root = folder.path.absolute()
    used = {f"{root}/{name}" for name in set(pairs.names())}
    images = [str(image.absolute()) for image in folder.images]
    if folder.links:  # an image's path may be that of another link to the same file
        used, images = set(map(os.path.realpath, used)), list(map(os.path.realpath, images))
    return sum(image not in used for image in images)
