"""Captions in files of their own: `1.txt`, `1.caption`, `1.TXT` or `1.jpg.txt`, beside the image or apart.

A `1.json` with a caption in it, as img2dataset writes them, is read where an image has no other.
"""

import codecs
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_core.data.formats.folder import CAPTION_SUFFIXES, Folder
from clip_core.errors import DataError

MOST_BYTES = 1_000_000  # of a file of captions
CAPTION_KEYS = ("caption", "text", "TEXT", "captions")  # of a .json beside an image, or in a shard

_LINES = re.compile(r"\r\n|\r|\n")
_BOXES = re.compile(r"\d+(\s+-?[\d.]+){4,}\s*")  # a class and a box, as YOLO's labels have them
_SAMPLE = 20  # files that are looked at for such

Key = tuple[Path, str]  # a folder, and the name that an image and its captions share


@dataclass
class CaptionFiles:
    """Which file holds the captions of which image."""

    of: dict[Path, Path] = field(default_factory=dict)  # image -> file of captions
    alone: int = 0  # files that belong to no image
    shared: int = 0  # files that belong to several, which differ in the suffix only
    second: Counter[str] = field(default_factory=Counter)  # by suffix: files of images that have captions already
    in_json: int = 0  # images whose captions are in a .json
    apart: str = ""  # the folders, where images and captions are in different ones


def match(folder: Folder) -> CaptionFiles:
    """The captions of every image.

    An image's captions are beside it. Where none are, they are in a folder that holds captions only, at the same place
    but for one folder's name: images/a/1.jpg and captions/a/1.txt.

    Raises:
        DataError: if captions are apart from the images and an image has them in two folders, or two images the same.
    """
    if folder.matched is None:
        beside = _beside(folder)
        _add_json(folder, beside)
        folder.matched = beside if beside.of or not folder.captions else _apart(folder)
    return folder.matched


def read_captions(file: Path) -> tuple[list[Any], str | None]:
    """The lines of a file that are not blank, or what a .json holds under a caption's key; or why there are none."""
    try:
        if not file.is_file():
            return [], f"there is no {file.name}"
        if file.stat().st_size > MOST_BYTES:
            return [], f"{file.name} is larger than {MOST_BYTES:,} bytes"
        text = decode_text(file.read_bytes())
    except ValueError:
        return [], f"{file.name} is not text in UTF-8 or UTF-16"
    except OSError as error:
        return [], f"{file.name} cannot be read ({error.strerror})"
    if file.suffix.lower() == ".json":
        return _captions_in_json(file.name, text)
    captions = [line.strip() for line in _LINES.split(text) if line.strip()]
    return captions, None if captions else f"{file.name} is empty"


def _captions_in_json(name: str, text: str) -> tuple[list[Any], str | None]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return [], f"{name} is not JSON"
    key = next((key for key in CAPTION_KEYS if key in value), None) if isinstance(value, dict) else None
    if key is None:
        return [], f"{name} has no caption"
    return (value[key] if isinstance(value[key], list) else [value[key]]), None


def json_beside(folder: Folder) -> dict[Path, Path]:
    """The 1.json or 1.jpg.json of each image that has one, with captions or without."""
    files = {(file.parent, file.stem): file for file in folder.lists if file.suffix.lower() == ".json"}
    found = {}
    for image in folder.images if files else []:
        file = files.get((image.parent, image.name)) or files.get((image.parent, image.stem))
        if file is not None:
            found[image] = file
    return found


def decode_text(content: bytes) -> str:
    """UTF-8, or UTF-16 or UTF-32 with a byte order mark, or UTF-16 with the zeros that Latin letters have in it.

    Raises:
        UnicodeDecodeError: if it is neither.
    """
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return content.decode("utf-32")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros = content[first:_SAMPLE:2]
        if len(zeros) > 1 and not any(zeros) and all(content[1 - first : _SAMPLE : 2]):
            return content.decode(encoding)
    return content.decode("utf-8-sig")


def hold_boxes(files: Sequence[Path]) -> bool:
    """Whether these are labels of objects in numbers, and no captions."""
    lines = [line for file in files[:_SAMPLE] for line in read_captions(file)[0]]
    return bool(lines) and all(_BOXES.fullmatch(line) for line in lines)


def _beside(folder: Folder) -> CaptionFiles:
    found = CaptionFiles()
    by_key: dict[Key, list[Path]] = defaultdict(list)
    for file in folder.captions:
        by_key[file.parent, file.stem].append(file)
    used: Counter[Path] = Counter()
    for image in folder.images:
        files = by_key.get((image.parent, image.name), []) or by_key.get((image.parent, image.stem), [])
        if files:
            found.of[image] = min(files, key=_preference)
            used[found.of[image]] += 1
            for file in files:
                used.setdefault(file, 0)
    found.shared = sum(count > 1 for count in used.values())
    found.second = Counter(file.suffix.lower() for file, count in used.items() if not count)
    found.alone = len(folder.captions) - len(used)
    return found


def _add_json(folder: Folder, found: CaptionFiles) -> None:
    """The .json of images without other captions, unless the first of them hold none either."""
    beside = {image: file for image, file in json_beside(folder).items() if image not in found.of}
    if any(read_captions(file)[1] is None for file in list(beside.values())[:_SAMPLE]):
        found.of |= beside
        found.in_json = len(beside)


def _apart(folder: Folder) -> CaptionFiles:
    found = CaptionFiles()
    of_images = {image.parent for image in folder.images}
    by_key: dict[tuple[int, tuple[str, ...], str], list[Path]] = defaultdict(list)
    for file in folder.captions:
        if file.parent in of_images:
            continue
        parts = file.relative_to(folder.path).parts[:-1]
        for place in range(len(parts)):
            by_key[place, parts[:place] + parts[place + 1 :], file.stem].append(file)
    taken: dict[Path, Path] = {}
    pairs: Counter[tuple[str, str]] = Counter()
    for image in folder.images:
        parts = image.relative_to(folder.path).parts[:-1]
        files = {
            file: (parts[place], file.relative_to(folder.path).parts[place])
            for stem in (image.stem, image.name)
            for place in range(len(parts))
            for file in by_key.get((place, parts[:place] + parts[place + 1 :], stem), [])
        }
        if len(files) > 1:
            first, second = list(files)[:2]
            raise DataError(f"{image} has captions in both {first} and {second}; move one of the folders away.")
        for file, names in files.items():
            other = taken.setdefault(file, image)
            if other.parent != image.parent:
                raise DataError(
                    f"{file} may be the caption of {other} or of {image}; put the captions beside the images."
                )
            found.of[image] = file
            pairs[names] += 1
    found.shared = len(found.of) - len(taken)
    found.alone = len(folder.captions) - len(taken)
    found.apart = ", ".join(f"{images}/ and {captions}/" for images, captions in pairs)
    return found


def _preference(file: Path) -> tuple[int, Path]:
    return CAPTION_SUFFIXES.index(file.suffix.lower()), file
