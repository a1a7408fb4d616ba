"""One folder per class: the folder's name, in a sentence, is the caption of every image below it.

train/cat/1.jpg and cat/train/1.jpg are the same class and split. Where captions exist, a folder's name is none.
"""

import re
from pathlib import Path

from clip_core.data.formats.caption_files import json_beside
from clip_core.data.formats.collect import Collector
from clip_core.data.formats.folder import SPLITS, Folder
from clip_core.data.formats.source import Contents, Source
from clip_core.data.formats.unsupported import name_a_list, unread_list
from clip_core.data.image_files import SUFFIXES
from clip_core.errors import DataError
from clip_core.text import printable

SHAPE = "one folder of images per class"
NUMBERED = re.compile(r"\d{1,4}[_. ]+(?=[^\W\d_])")  # 10_cat, as kohya's scripts repeat it; 001.Albatross

# Folders that data sets keep their files in, and no classes.
_NO_CLASSES = frozenset(
    {"annotations", "captions", "images", "image", "img", "imgs", "labels", "masks", "photos", "pics", "pictures",
     "thumbnails", "thumbs"}
)  # fmt: skip
_CODES = re.compile(r"\d+|[a-z]\d{6,}", re.IGNORECASE)  # n01440764
_HEAD = 65536  # bytes of a list that is looked at
_SOME = 2  # images that a list names at least
_LISTS = 50  # files of captions that may be lists
_NAMED = 5  # files and folders in a message


def detect(source: Source) -> str | None:
    """Why a folder holds classes.

    Raises:
        DataError: if it holds images and no captions; with the way out.
    """
    if not source.path.is_dir():
        return None
    folder = source.folder
    if not folder.images:
        _check_unread(folder)
        return None
    classes = list(_classes(folder))
    beside = set(json_beside(folder).values())  # without captions: they would be sidecars
    lists = [file for file in folder.lists if file not in beside and (len(classes) < 2 or _names_images(file))]
    lists += [file for file in folder.captions[:_LISTS] if _names_images(file)]  # Flickr8k's captions.txt
    if lists:
        raise DataError(name_a_list(source.path, lists))
    if len(classes) >= 2 and not _NO_CLASSES.intersection(name.casefold() for name in classes):
        _check_splits(source.path, classes)
        return f"it holds {len(classes):,} folders with images"
    raise DataError(_without_captions(folder, classes))


def read(source: Source) -> Contents:
    """Every image below a folder of its own class; images beside the folders have none and are left out.

    Raises:
        DataError: if there is no such image.
    """
    folder = source.folder
    root = source.path
    collector = Collector(root)
    classes = _classes(folder)
    titles = {name: _title(name) for name in classes}
    images = [image for of_class in classes.values() for image in of_class]
    names = (name for name, of_class in classes.items() for _ in of_class)
    for entry, (image, name) in enumerate(zip(images, names, strict=True), start=1):
        spelt = str(image.relative_to(root))
        caption = source.options.class_template.replace("{}", titles[name])
        collector.add(entry, spelt, caption, spelt, split=folder.split_of(image))
    if not collector.pairs:
        raise DataError(f"{root} holds no folders with images, one per class; name another folder.")
    not_read = folder.not_read(images=len(folder.images) - len(images))
    if folder.captions:
        not_read |= {".txt": len(folder.captions)}
    return Contents(
        collector.pairs,
        root,
        notes=[*folder.notes(), *_notes(titles), *_nested(folder, classes)],
        not_read=not_read,
    )


def _classes(folder: Folder) -> dict[str, list[Path]]:
    """The images of each class, by its folder's name; images in no such folder are left out."""
    classes: dict[str, list[Path]] = {}
    place = 1 if folder.split_level == 0 else 0
    for image in folder.images:
        parts = image.relative_to(folder.path).parts[:-1]
        if place < len(parts):
            classes.setdefault(parts[place], []).append(image)
    return classes


def _title(name: str) -> str:
    return " ".join(NUMBERED.sub("", name, count=1).replace("_", " ").split())


def _notes(titles: dict[str, str]) -> list[str]:
    notes = []
    numbered = [name for name in titles if NUMBERED.match(name)]
    if numbered:
        first = numbered[0]
        said = f'{printable(first, 60)} is "{printable(titles[first], 60)}"'
        notes.append(f"the number in front of {len(numbered):,} folders' names is no part of the class: {said}")
    codes = [name for name in titles if _CODES.fullmatch(name)]
    if codes:
        notes.append(f"{len(codes):,} folders' names are codes and no words, such as {codes[0]}; rename them")
    return notes


def _nested(folder: Folder, classes: dict[str, list[Path]]) -> list[str]:
    """A note where classes hold images in several folders, which may be classes themselves."""
    depth = 1 if folder.split_level is None else 2
    for name, images in classes.items():
        inner = {image.relative_to(folder.path).parts[depth : depth + 1] for image in images}
        folders = sorted({image.parent.name for image in images})
        if len(inner) >= 2 and all(len(image.relative_to(folder.path).parts) > depth + 1 for image in images):
            said = ", ".join(printable(inside, 60) for inside in folders[:_NAMED])
            return [f"the folders in {printable(name, 60)} ({said}) are one class, called {printable(name, 60)}"]
    return []


def _check_splits(path: Path, names: list[str]) -> None:
    """Refuse train and test beside other folders: whether they are classes or splits is ambiguous."""
    splits = [name for name in names if name.casefold() in SPLITS]
    if len({SPLITS[name.casefold()] for name in splits}) >= 2:
        others = ", ".join(printable(name, 60) for name in names if name not in splits[:_NAMED])
        raise DataError(
            f"{path} holds the splits {', '.join(splits)} and beside them {others}; "
            f"name one: --data {path / splits[0]} (and --val-file for another)."
        )


def _check_unread(folder: Folder) -> None:
    """Say what a folder without any image holds, if it is something like images."""
    heif = sum(folder.others[suffix] for suffix in (".heic", ".heif", ".hif"))
    if heif:
        raise DataError(
            f"{folder.path} holds {heif:,} HEIC images, which need pillow-heif: pip install 'clip-tui[heic]'."
        )


def _without_captions(folder: Folder, classes: list[str]) -> str:
    path, count, texts = folder.path, len(folder.images), len(folder.captions)
    held = f"{path} has {count:,} image{'' if count == 1 else 's'}"
    unread = unread_list(path)
    if unread is not None:
        return unread
    none = f"no captions ({texts:,} .txt match no image by name)" if texts else "no captions"
    jsons = len(json_beside(folder))
    if jsons and not texts:
        none = f"no captions ({jsons:,} .json beside them have none under caption or text)"
    way_out = "add a NAME.txt beside each, or name a list of pairs"
    named = ", ".join(printable(name, 60) for name in classes[:_NAMED])
    if not classes:
        return f"{held} and {none}: {way_out}."
    if _NO_CLASSES.intersection(name.casefold() for name in classes):
        return f"{held} in {named} and {none}: {way_out}."
    below = [image.relative_to(path).parts for image in folder.images]
    inner = {parts[1] for parts in below if len(parts) > 2}
    if len(inner) >= 2 and folder.split_level is None:
        deeper = path / named
        return f"{path} holds one folder, {named}, with {len(inner):,} folders in it: name {deeper}."
    title = printable(_title(classes[0]), 60)
    forced = f'--format class-folders makes each "a photo of a {title}"'
    return f"{held} in one folder, {named}, and {none}: {way_out}; {forced}."


def _names_images(file: Path) -> bool:
    """Whether a file names a few images."""
    try:
        with file.open("rb") as handle:
            head = handle.read(_HEAD).lower()
    except OSError:
        return False
    return sum(head.count(suffix.encode()) for suffix in SUFFIXES) >= _SOME
