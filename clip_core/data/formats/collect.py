"""Entries of any list made into pairs; misspelt paths are repaired where one rule repairs them all."""

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from clip_core.data.formats.captions import clean_caption, list_in_cell, sound_captions
from clip_core.data.formats.image_root import ADVICE, ImageRoot, is_inline, is_url, shown
from clip_core.data.formats.source import Contents
from clip_core.data.formats.spelling import Spelling
from clip_core.data.image_files import SUFFIXES
from clip_core.data.listed import Block, ListedPairs
from clip_core.data.pairs import Pair
from clip_core.errors import DataError
from clip_core.text import printable

__all__ = ["Collector", "find_root", "folders_beside", "is_file_below", "many_objects", "shown"]

_PATH_KEYS = ("path", "file_name", "filename", "image", "url")  # of an image that is an object
_FEW = 64  # entries that are looked at one by one
_MOST_FOLDERS = 64  # beside a list that its images are looked for in


class Collector:
    """Makes `pairs` out of entries; an invalid entry has a `problem`."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"no folder at {root}; correct --image-root.")
        self.root = root
        self.pairs = ListedPairs(root)
        self.notes: list[str] = []
        self._place = ImageRoot(root)
        self._missing: dict[int, str] = {}  # of a pair: its image as the list spells it
        self._urls: list[str] = []  # the first, of how many
        self._url_count = 0
        self._cells = 0

    def add(
        self,
        entry: int,
        image: object,
        captions: object,
        where: str = "",
        problem: str | None = None,
        split: str | None = None,
    ) -> None:
        """One image with its caption, or with a list of them.

        Args:
            entry: its number, from 1.
            image: the path as the list spells it; anything else is a bad pair.
            captions: a text, or a list of texts; anything else is a bad pair. A text may be a list in itself.
            where: the entry in the terms of its format; "entry N" if empty.
            problem: what the format's reader found.
            split: as in `Pair`.
        """
        if not isinstance(image, str):
            image, wrong = _path_in(image)
            problem = problem or wrong
        path, name, lost, missing = self._place.find(image)
        if isinstance(captions, str) and captions[-1:] in ("]", ")"):
            listed = list_in_cell(captions)
            if listed is not None:
                captions, self._cells = listed, self._cells + 1
        if lost is not None and isinstance(image, str) and is_url(image):
            self._url_count += 1
            self._urls = self._urls or [image]
        for caption in (captions or [""]) if isinstance(captions, list) else (captions,):
            text, mistake = clean_caption(caption)
            if missing and problem is None:
                self._missing[len(self.pairs)] = str(image)
            self.pairs.append(Pair(str(path), text, entry, name, problem or lost or mistake, where, split))

    def add_many(
        self,
        entry: int,
        images: Sequence[object],
        captions: Sequence[object],
        where: str = "",
        numbers: Sequence[int] = (),
        splits: Sequence[str | None] | None = None,
    ) -> None:
        """What `add` does for each, in columns of one length; where all is well, at once.

        Args:
            entry: the number of the first, from 1.
            where: said before an entry's number in `numbers`; "entry N" if empty.
        """
        count = len(images)
        if not count:
            return
        texts = sound_captions(captions)
        all_paths = texts is not None and set(map(type, images)) == {str}
        names = self._place.names(images) if all_paths else None  # type: ignore[arg-type]
        numbers = numbers or range(entry, entry + count)
        if names is not None and texts is not None:
            self.pairs.extend(Block(names, texts, entry, where, numbers, splits))
        elif count > _FEW:
            half = count // 2
            for part in (slice(half), slice(half, None)):
                own = None if splits is None else splits[part]
                start = entry + (part.start or 0)
                self.add_many(start, images[part], captions[part], where, numbers[part], own)
        else:
            for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
                said = f"{where}{numbers[place]}" if where else ""
                self.add(entry + place, image, caption, said, None, splits[place] if splits else None)

    def contents(self, source: Path, columns: Mapping[str, str] | None = None, notes: Sequence[str] = ()) -> Contents:
        """All that was added, after misspelt paths are repaired.

        Raises:
            DataError: if every image is a URL.
        """
        if self._url_count and self._url_count == len({pair.entry for pair in self.pairs}):
            first = shown(self._urls[0])
            if is_inline(self._urls[0]):
                count = f"{self._url_count:,} images"
                raise DataError(f"{source}: its {count} are written in it as base64; write them to files.")
            raise DataError(f"{source}: its {self._url_count:,} images are URLs, first {first}; {ADVICE}.")
        said = list(notes)
        own, root = source.parent.resolve(), self.root.resolve()
        if own != root and own.is_relative_to(root):
            said.append(f"image paths are looked for below {self.root}, above the list's own folder.")
        if self._url_count:
            said.append(f"{self._url_count:,} images are URLs and are not used; {ADVICE}.")
        if self._cells:
            said.append(f"{self._cells:,} captions are lists; each of their captions makes a pair.")
        if self._missing:
            said += self._repair()
        return Contents(self.pairs, self.root, dict(columns or {}), said + self.notes)

    def _repair(self) -> list[str]:
        """Images that are found under another spelling; else the nearest spelling is named."""
        spelling = Spelling(self._place, list(dict.fromkeys(self._missing.values())))
        rule = spelling.rule({pair.name for pair in self.pairs if pair.problem is None})
        if rule is not None:
            for place, spelt in self._missing.items():
                name = rule.names.get(spelt)
                if name is not None:
                    path, name, lost, _ = self._place.find(name)
                    pair = self.pairs[place]
                    mistake = None if pair.caption else clean_caption(pair.caption)[1]
                    self.pairs.replace(place, pair._replace(path=str(path), name=name, problem=lost or mistake))
        for place, spelt in self._missing.items():
            nearest = None if rule and spelt in rule.names else spelling.nearest(spelt)
            if nearest is not None:
                pair = self.pairs[place]
                image = printable(pair.path)
                said = f"no image at {image}; the nearest is {nearest}, correct the path"
                self.pairs.replace(place, pair._replace(problem=said))
        return [rule.note] if rule else []


def _path_in(image: object) -> tuple[object, str | None]:
    """The path of an image that is given as an object or a list, as {"path": "1.jpg", "bytes": null} and ["1.jpg"]."""
    if isinstance(image, list | tuple) and image:
        if len(image) > 1:
            return image[0], f"it has {len(image):,} images; one is needed"
        image = image[0]
    if isinstance(image, dict):
        image = next((image[key] for key in _PATH_KEYS if isinstance(image.get(key), str)), image)
    return image, None


@contextmanager
def many_objects() -> Iterator[None]:
    """Make many objects that all stay: looking for garbage among them would take a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def find_root(folders: Iterable[Path], images: Sequence[str]) -> Path:
    """The folder among some that holds most of these images; the first where none holds any.

    Where all are absolute and below the folder that the first lies in, as beside a folder of lists, it is that one.
    """
    choice = list(folders)
    best = max(choice, key=lambda folder: sum(is_file_below(folder, image) for image in images))
    absolute = [Path(image) for image in images if image.strip()]
    if absolute and all(image.is_absolute() and image.suffix.lower() in SUFFIXES for image in absolute):
        own, above = choice[0].resolve(), choice[0].resolve().parent
        try:
            found = [image.resolve() for image in absolute if image.is_file()]
        except (OSError, ValueError, RuntimeError):
            return best
        inside = all(image.is_relative_to(above) for image in found)
        if found and inside and above != Path(above.anchor) and not all(image.is_relative_to(own) for image in found):
            return Path(os.path.commonpath([own, *found]))
    return best


def folders_beside(file: Path) -> list[Path]:
    """A list's own folder and those in it: where data sets as they are published keep their images."""
    own = file.parent
    try:
        inner = sorted(folder for folder in own.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    except OSError:
        inner = []
    return [own, *inner[:_MOST_FOLDERS]]


def is_file_below(folder: Path, spelt: str) -> bool:
    try:
        return bool(spelt.strip()) and (folder / spelt).is_file()
    except (OSError, ValueError):  # a NUL, half a surrogate, a name too long
        return False
