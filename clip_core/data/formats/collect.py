"""Entries of any list made into pairs: images are looked for below one folder, and only there."""

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from clip_core.data.image_files import Member, member_of
from clip_core.data.pairs import Pair
from clip_core.errors import DataError
from clip_core.text import printable

_MOST_FOLDERS = 64  # beside a list that its images are looked for in


class Collector:
    """Makes `pairs` out of entries; an invalid entry has a `problem`."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"no folder at {root}; correct --image-root.")
        self.pairs: list[Pair] = []
        self._place = _Root(root)

    def add(self, entry: int, image: object, captions: object, where: str = "", problem: str | None = None) -> None:
        """One image with its caption, or with a list of them.

        Args:
            entry: its number, from 1.
            image: the path as the list spells it; anything else is a bad pair.
            captions: a text, or a list of texts; anything else is a bad pair.
            where: the entry in the terms of its format; "entry N" if empty.
            problem: what the format's reader found.
        """
        path, name, lost = self._place.find(image)
        for caption in (captions or [""]) if isinstance(captions, list) else [captions]:
            text, mistake = _caption(caption)
            self.pairs.append(Pair(path, text, entry, name, problem or lost or mistake, where))


def find_root(folders: Iterable[Path], images: Sequence[str]) -> Path:
    """The folder among some that holds most of these images; the first where none holds any."""
    choice = list(folders)
    return max(choice, key=lambda folder: sum(is_file_below(folder, image) for image in images))


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


def shown(value: object) -> str:
    """A value from a file, short and safe to print."""
    return printable(repr(value), limit=80)


def _caption(caption: object) -> tuple[str, str | None]:
    if not isinstance(caption, str):
        return "", f"the caption {shown(caption)} is not text"
    # Half surrogates can be spelt in JSON but not written as UTF-8.
    text = caption.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()
    return text, None if text else "the caption is empty"


class _Root:
    """Finds images below a folder, and only there; a link below it may lead to a regular file elsewhere."""

    def __init__(self, root: Path) -> None:
        self.path = root.absolute()
        self._real = self.path.resolve()
        # Most images are in a few folders: each folder is resolved once, which leaves one system call an image.
        self._folder = lru_cache(maxsize=4096)(self._resolve_folder)
        self._linked: dict[Path, str] = {}  # where links lead, elsewhere -> the first of them
        self._last: tuple[object, tuple[Path, str, str | None]] = object(), (self.path, "", None)

    def find(self, spelt: object) -> tuple[Path, str, str | None]:
        """(absolute path, name below the root, what is wrong or None) of an image as the list spells it."""
        if spelt != self._last[0]:  # the captions of an image are mostly consecutive
            self._last = spelt, self._find(spelt)
        return self._last[1]

    def _find(self, spelt: object) -> tuple[Path, str, str | None]:
        if not isinstance(spelt, str | Path) or not str(spelt).strip():
            return self.path, "", f"the image {shown(spelt)} is not a path"
        if str(spelt).startswith(("http://", "https://")):
            return self.path, "", f"the image {shown(spelt)} is a web address, fetch it first"
        try:
            below = self._below(self.path / spelt)
        except (OSError, ValueError, RuntimeError):  # a NUL, half a surrogate, a loop of links
            return self.path, "", f"the image {shown(spelt)} is not a path"
        if below is None:
            return self.path, str(spelt), f"{shown(spelt)} leads out of {self.path}, give a higher --image-root"
        return self.path / below, below, None

    def _below(self, image: Path) -> str | None:
        """The path below the root of where a file, or the shard of a member, truly is; None if that is outside."""
        member = member_of(image)
        if member is not None:
            shard = self._inside(member.shard)
            return (
                None if shard is None else Member(Path(shard), member.offset, member.size).path(image.name).as_posix()
            )
        below = self._inside(image)
        return below if below is not None else self._through_link(image)

    def _through_link(self, image: Path) -> str | None:
        """The path below the root of a link, or of a file in a linked folder; the first of several to one file."""
        if ".." in image.parts or not image.is_relative_to(self.path):
            return None
        target = image.resolve()
        if not target.is_file():
            return None
        return self._linked.setdefault(target, image.relative_to(self.path).as_posix())

    def _inside(self, image: Path) -> str | None:
        """The path below the root of where a file truly is; None if that is outside."""
        real, below = self._folder(image.parent)
        if image.name not in ("", "..") and not os.path.islink(f"{real}/{image.name}"):  # noqa: PTH114  (much faster)
            return None if below is None else f"{below}{image.name}"
        target = image.resolve()
        return target.relative_to(self._real).as_posix() if target.is_relative_to(self._real) else None

    def _resolve_folder(self, folder: Path) -> tuple[str, str | None]:
        """A folder's real path, and the prefix of its files' names below the root; None if it is outside."""
        real = folder.resolve()
        if not real.is_relative_to(self._real):
            return str(real), None
        below = real.relative_to(self._real).as_posix()
        return str(real), "" if below == "." else f"{below}/"
