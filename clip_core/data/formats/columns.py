"""Which column of a table holds the images, and which the captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from clip_core.data.formats.collect import find_root, folders_beside, is_file_below, shown
from clip_core.data.formats.source import Source
from clip_core.data.image_files import SUFFIXES
from clip_core.errors import DataError

IMAGE_NAMES = (
    "image", "image_path", "file_name", "filename", "filepath", "file", "path", "image_name", "img", "image_file",
    "img_path", "picture", "photo", "images", "jpg",
)  # fmt: skip
CAPTION_NAMES = (
    "caption", "captions", "text", "comment", "description", "sentence", "title", "alt_text", "alt", "txt", "prompt",
    "label", "class", "category",
)  # fmt: skip

_SAMPLE = 40  # rows whose values are looked at
_MANY = 0.5  # share of a column's values that must look like images


@dataclass(frozen=True)
class Columns:
    """Places of the two columns, and the folder that the images are below."""

    image: int
    caption: int
    root: Path


def choose_columns(source: Source, names: Sequence[str], rows: Sequence[Sequence[object]]) -> Columns:
    """Images are where the values are files, or at least end like one; captions by the name or the length.

    Args:
        source: the table's path, and the columns and the folder that the user named.
        names: of the columns, as the table has them.
        rows: the table; the first few are looked at. A row may be shorter than `names`.
    Raises:
        DataError: naming the columns, if none can be chosen.
    """
    sample = [row for row in islice(rows, _SAMPLE) if any(str(value).strip() for value in row)]
    texts = [[str(row[place]) for row in sample if place < len(row)] for place in range(len(names))]
    options = source.options
    folders = [options.image_root] if options.image_root is not None else folders_beside(source.path)
    image = _named(source, names, options.image_column, "--image-column")
    if image is None:
        image = _image_column(source, names, texts, folders)
    caption = _named(source, names, options.caption_column, "--caption-column")
    if caption is None:
        caption = _caption_column(source, names, texts, image)
    return Columns(image, caption, find_root(folders, texts[image]))


def _named(source: Source, names: Sequence[str], wanted: str | None, flag: str) -> int | None:
    """The place of the column that the user named, or gave the number of."""
    if wanted is None:
        return None
    same = [place for place, name in enumerate(names) if name.strip().casefold() == wanted.strip().casefold()]
    if same:
        return same[0]
    if wanted.isdecimal() and 1 <= int(wanted) <= len(names):
        return int(wanted) - 1
    raise DataError(f"{source.path} has no column {shown(wanted)}, only {_listed(names)}; correct {flag}.")


def _image_column(source: Source, names: Sequence[str], texts: Sequence[Sequence[str]], folders: Sequence[Path]) -> int:
    def files(place: int) -> int:
        return max(sum(is_file_below(folder, value) for value in texts[place]) for folder in folders)

    def images(place: int) -> int:
        return sum(Path(value.strip()).suffix.lower() in SUFFIXES for value in texts[place])

    order = sorted(range(len(names)), key=lambda place: _rank(names[place], IMAGE_NAMES))
    for count in (files, images):
        best = max(order, key=count)  # the first of equals, so a telling name decides
        if count(best) > _MANY * len(texts[best]):
            return best
    if order and _rank(names[order[0]], IMAGE_NAMES) < len(IMAGE_NAMES):
        return order[0]
    raise DataError(f"{source.path}: no column holds images among {_listed(names)}; name it with --image-column.")


def _caption_column(source: Source, names: Sequence[str], texts: Sequence[Sequence[str]], image: int) -> int:
    others = [place for place in range(len(names)) if place != image]
    named = min(others, key=lambda place: _rank(names[place], CAPTION_NAMES), default=image)
    if named != image and _rank(names[named], CAPTION_NAMES) < len(CAPTION_NAMES):
        return named
    worded = [place for place in others if any(letter.isalpha() for text in texts[place] for letter in text)]
    if not worded:
        listed = _listed(names)
        raise DataError(f"{source.path}: no column holds captions among {listed}; name it with --caption-column.")
    return max(worded, key=lambda place: sum(map(len, texts[place])))


def _rank(name: str, known: Sequence[str]) -> int:
    """Rank of a column's name among the known ones; the lower, the better."""
    plain = "_".join(name.strip().casefold().replace("-", " ").replace("_", " ").split())
    return known.index(plain) if plain in known else len(known)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(shown(name) for name in names[:12])
