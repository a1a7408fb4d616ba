"""Which column of a table holds the images, which the captions, and which the split."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from clip_core.data.formats.captions import is_missing
from clip_core.data.formats.collect import find_root, folders_beside, is_file_below, shown
from clip_core.data.formats.image_root import is_url
from clip_core.data.formats.source import Source
from clip_core.data.image_files import SUFFIXES
from clip_core.errors import DataError
from clip_core.text import printable

IMAGE_NAMES = (
    "image", "image_path", "file_name", "filename", "filepath", "file_path", "file", "path", "image_name", "img",
    "image_file", "image_filename", "img_path", "img_name", "picture", "photo", "images", "jpg", "image_id", "img_id",
)  # fmt: skip
URL_NAMES = ("url", "image_url", "uri", "link")
CAPTION_NAMES = (
    "caption", "captions", "text", "comment", "sentence", "sentences", "txt", "conversations", "messages",
)  # fmt: skip
_WEAK_NAMES = ("description", "title", "alt_text", "alt", "prompt")  # often several of them
_CLASS_NAMES = ("label", "class", "category", "class_name", "label_name")
KNOWN_NAMES = frozenset({*IMAGE_NAMES, *URL_NAMES, *CAPTION_NAMES, *_WEAK_NAMES, *_CLASS_NAMES})

_SPLIT_NAMES = ("split", "splits", "subset", "partition", "set", "fold", "phase", "data_split")
_SPLITS = {
    "train": "train", "training": "train", "trn": "train", "restval": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val",
    "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip

_SPLIT_FLAGS = (
    "train", "val", "valid", "validation", "test", "is_train", "is_val", "is_valid", "is_validation", "is_test",
    "is_training", "for_training",
)  # fmt: skip

_SPLIT_NAME = re.compile(r"([A-Za-z]+)(?:[-_.]|$)")
_SAMPLE = 40  # rows whose values are looked at
_MANY = 0.5  # share of a column's values that must look like images


@dataclass(frozen=True)
class Columns:
    """Places of the columns, and the folder that the images are below."""

    image: int
    caption: int
    root: Path
    split: int | None = None
    notes: list[str] = field(default_factory=list)  # what was assumed

    def named(self, names: Sequence[str]) -> dict[str, str]:
        found = {"image": names[self.image], "caption": names[self.caption]}
        return found if self.split is None else found | {"split": names[self.split]}


def choose_columns(source: Source, names: Sequence[str], rows: Sequence[Sequence[object]]) -> Columns:
    """Images are where the values are files, or at least end like one; captions by the name or the words.

    Args:
        source: the table's path, and the columns and the folder that the user named.
        names: of the columns, as the table has them.
        rows: the table; the first few are looked at. A row may be shorter than `names`.
    Raises:
        DataError: naming the columns, if none can be chosen, or several could be the captions.
    """
    sample = [row for row in islice(rows, _SAMPLE) if any(str(value).strip() for value in row)]
    texts = [[str(row[place]) for row in sample if place < len(row)] for place in range(len(names))]
    options = source.options
    folders = [options.image_root] if options.image_root is not None else folders_beside(source.path)
    image = _named(source, names, options.image_column, "--image-column")
    if image is None:
        image = _image_column(source, names, texts, folders)
    split, notes = _split_column(names, rows, image)
    caption = _named(source, names, options.caption_column, "--caption-column")
    if caption is None:
        others = [place for place in range(len(names)) if place not in (image, split)]
        caption, more = _caption_column(source, names, texts, others)
        notes += more
    return Columns(image, caption, find_root(folders, texts[image]), None if split == caption else split, notes)


def split_of(value: object) -> str | None:
    """Which split a value names: "train", "val" or "test" as data sets spell them; None for anything else."""
    return _SPLITS.get(value.strip().casefold()) if isinstance(value, str) else None


def split_of_file(top: Path, file: Path) -> str | None:
    """By a file's name, as in train-00000-of-00003.parquet, or by a folder below `top` that it is in."""
    names = [file.name, *(part.name for part in file.parents if part != top and part.is_relative_to(top))]
    found = (_SPLIT_NAME.match(name) for name in names)
    return next((part for part in (split_of(match[1]) for match in found if match) if part), None)


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
        return sum(_is_image(value) and not is_url(value) for value in texts[place])

    order = sorted(range(len(names)), key=lambda place: _rank(names[place], IMAGE_NAMES))
    for count in (files, images) if order else ():
        best = max(order, key=count)  # the first of equals, so a telling name decides
        if count(best) > _MANY * len(texts[best]):
            return best
    if order and _rank(names[order[0]], IMAGE_NAMES) < len(IMAGE_NAMES):
        return order[0]
    linked = [place for place in order if _share(texts[place], is_url) > _MANY]
    if linked:
        return min(linked, key=lambda place: _rank(names[place], URL_NAMES))
    raise DataError(f"{source.path}: no column holds images among {_listed(names)}; name it with --image-column.")


def _caption_column(
    source: Source, names: Sequence[str], texts: Sequence[Sequence[str]], others: Sequence[int]
) -> tuple[int, list[str]]:
    """A column with a caption's name; else the only one with words. Never one of URLs, paths or numbers."""
    worded = [place for place in others if _has_words(texts[place])]
    strong = sorted(
        (place for place in others if _is_called(names[place], CAPTION_NAMES) and _may_be_captions(texts[place])),
        key=lambda place: _rank(names[place], CAPTION_NAMES),
    )
    if strong:
        return strong[0], _chosen(names, strong)
    phrases = [place for place in worded if _share(texts[place], _is_phrase) > _MANY]
    weak = [place for place in worded if _is_called(names[place], _WEAK_NAMES)]
    classes = [place for place in worded if _is_called(names[place], _CLASS_NAMES)]
    unnamed = [place for place in phrases if place not in (*weak, *classes)]
    for choice in (weak, [*classes, *unnamed], worded):
        if len(choice) == 1:
            return choice[0], _chosen(names, [choice[0], *(place for place in phrases if place != choice[0])])
        if choice:
            listed = _listed([names[place] for place in choice])
            raise DataError(f"{source.path}: the captions may be in {listed}; choose one with --caption-column.")
    numbered = [place for place in others if _is_called(names[place], (*CAPTION_NAMES, *_CLASS_NAMES))]
    if numbered and not any(_says(letter) for text in texts[numbered[0]] for letter in text):
        name = names[numbered[0]]
        wanted = f"write the names of the classes there, or take it as it is with --caption-column {printable(name)}"
        raise DataError(f"{source.path}: column {shown(name)} holds only numbers, which are no captions; {wanted}.")
    raise DataError(f"{source.path}: no column holds captions among {_listed(names)}; name it with --caption-column.")


def _chosen(names: Sequence[str], places: Sequence[int]) -> list[str]:
    """A note where others than the first could be meant."""
    if len(places) < 2:
        return []
    others = _listed([names[place] for place in places[1:]])
    return [f"captions are taken from {shown(names[places[0]])}, not from {others}; see --caption-column."]


def _split_column(names: Sequence[str], rows: Sequence[Sequence[object]], image: int) -> tuple[int | None, list[str]]:
    """The column that tells train, validation and test apart; one that is called so and does not is noted."""
    for place, name in enumerate(names):
        if place == image or not _is_called(name, _SPLIT_NAMES):
            continue
        values = [str(row[place]).strip() for row in rows if place < len(row) and str(row[place]).strip()]
        odd = next((value for value in values if split_of(value) is None), None)
        if values and sum(split_of(value) is not None for value in values) > _MANY * len(values):
            return place, []
        if odd is not None:
            return None, [f"column {shown(name)} is ignored: {shown(odd)} is not train, val or test."]
    flags = [shown(name) for place, name in enumerate(names) if place != image and _is_called(name, _SPLIT_FLAGS)]
    if flags:
        return None, [f"column {', '.join(flags)} is ignored; a column called split with train, val and test is read."]
    return None, []


def _may_be_captions(texts: Sequence[str]) -> bool:
    """Whether a column that is called so may be the captions; one without any value in the sample may."""
    others = _share(texts, lambda text: is_url(text) or _is_image(text))
    return others <= _MANY and (any(map(_is_worded, texts)) or all(is_missing(text.strip()) for text in texts))


def _has_words(texts: Sequence[str]) -> bool:
    """Whether most values that are there have letters, and are neither URLs nor paths of images."""
    present = [text.strip() for text in texts if not is_missing(text.strip())]
    return bool(present) and _share(present, _is_worded) > _MANY


def _is_worded(text: str) -> bool:
    return any(map(_says, text)) and not is_url(text) and not _is_image(text)


def _says(letter: str) -> bool:
    """Whether a character says something, as a letter or an emoji does and a digit does not."""
    return letter.isalpha() or unicodedata.category(letter) == "So"


def _is_phrase(text: str) -> bool:
    return len(text.split()) > 1 or (len(text) > 3 and not text.isascii())  # not every script has spaces


def _is_image(text: str) -> bool:
    return text.strip().casefold().endswith(tuple(SUFFIXES)) and "\n" not in text.strip()


def _share(texts: Sequence[str], fits: Callable[[str], bool]) -> float:
    return sum(map(fits, texts)) / len(texts) if texts else 0.0


def _is_called(name: str, known: Sequence[str]) -> bool:
    return _rank(name, known) < len(known)


def _rank(name: str, known: Sequence[str]) -> int:
    """Rank of a column's name among the known ones; the lower, the better."""
    plain = "_".join(name.strip().casefold().replace("-", " ").replace("_", " ").split())
    return known.index(plain) if plain in known else len(known)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(shown(name) for name in names[:12])
