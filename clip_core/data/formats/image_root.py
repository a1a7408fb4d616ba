"""Images looked for below one folder, and only there: folders are listed once, not asked for each image.

A path may not lead out of the folder. A link in it may, to a regular file: people link folders of images, and every
file in a snapshot of huggingface_hub is a link.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from clip_core.data.image_files import Member, member_of
from clip_core.text import printable

_MOST_LISTED = 4_000_000  # names kept
_MOST_FOLDERS = 50_000

URLS = ("http://", "https://", "s3://", "gs://", "ftp://", "data:")
_INLINE = "data:"  # an image itself, in base64
INLINE_ADVICE = "is written in the list itself as base64; write them to files"
ADVICE = "download them first, for example with img2dataset"


class Found(NamedTuple):
    """Where an image is: `name` is its path below the root, `problem` what is wrong or None."""

    path: Path
    name: str
    problem: str | None = None
    missing: bool = False  # no such file; another spelling may have one


class _Folder(NamedTuple):
    files: set[str]  # regular files, each with the folder before it as the list spells it; all else is looked at
    path: Path
    below: str  # before the names of its files


class ImageRoot:
    """Finds images below a folder."""

    def __init__(self, root: Path) -> None:
        self.path = root.absolute()
        self._real = self.path.resolve()
        self._resolved = lru_cache(maxsize=4096)(self._resolve_folder)
        self._folders: dict[str, _Folder] = {}
        self._plain: set[str] = set()  # files of all folders whose names are those below the root
        self._listed = 0
        self._linked: dict[Path, str] = {}  # where links lead, outside -> the first of them
        self._last: tuple[object, Found] = object(), Found(self.path, "")

    def find(self, spelt: object) -> Found:
        """An image as the list spells it."""
        if spelt == self._last[0]:  # the captions of an image are mostly consecutive
            return self._last[1]
        found = None
        if isinstance(spelt, str):
            folder, slash, name = spelt.rpartition("/")
            known = self._folder(folder + slash)
            if spelt in known.files:
                found = Found(known.path / name, known.below + name)
        self._last = spelt, found or self._look(spelt)
        return self._last[1]

    def names(self, spelt: Sequence[str]) -> Sequence[str] | None:
        """The names of images that are all regular files, in folders that need no look at each; else None."""
        if all(map(self._plain.__contains__, spelt)):
            return spelt
        left = set(spelt) - self._plain
        prefixes = {image[: image.rfind("/") + 1] for image in left}
        folders = [self._folder(prefix) for prefix in prefixes]
        if all(folder.files is self._plain for folder in folders):
            return None if left - self._plain else spelt
        ((folder, prefix),) = zip(folders, prefixes, strict=True) if len(folders) == 1 else ((None, ""),)
        if folder is None or len(left) < len(set(spelt)) or left - folder.files:
            return None
        return [folder.below + image[len(prefix) :] for image in spelt]

    def _folder(self, prefix: str) -> _Folder:
        known = self._folders.get(prefix)
        return self._list(prefix) if known is None else known

    def _list(self, folder: str) -> _Folder:
        """The regular files of a folder below the root; none where it is not, or has too many."""
        if len(self._folders) >= _MOST_FOLDERS:
            self._folders.clear()
            self._listed, self._plain = 0, set()
        listed = _Folder(set(), self.path, "")
        try:
            real, below = self._resolved(self.path / folder)
            if below is not None and "\0" not in folder and self._listed < _MOST_LISTED:
                with os.scandir(real) as items:
                    files = {folder + item.name for item in items if item.is_file(follow_symlinks=False)}
                self._listed += len(files)
                if below == folder:
                    self._plain |= files
                    files = self._plain
                listed = _Folder(files, self.path / below, below)
        except (OSError, ValueError, RuntimeError):  # missing, or no path: said for each image
            pass
        self._folders[folder] = listed
        return listed

    def _look(self, spelt: object) -> Found:
        if not isinstance(spelt, str | Path) or not str(spelt).strip():
            return Found(self.path, "", f"the image {shown(spelt)} is not a path")
        if is_url(str(spelt)):
            advice = INLINE_ADVICE if is_inline(str(spelt)) else f"is a URL; {ADVICE}"
            return Found(self.path, "", f"the image {shown(spelt)} {advice.replace('them', 'it')}")
        try:
            below = self._below(self.path / spelt)
            if below is None:
                below = self._through_link(self.path / spelt)
            if below is None:
                return self._outside(self.path / spelt, spelt)
            path = self.path / below
            if member_of(path) is None and not os.path.lexists(path):
                return Found(path, below, f"no image at {printable(str(path))}; correct the path", missing=True)
        except (OSError, ValueError, RuntimeError):  # a NUL, half a surrogate, a loop of links
            return Found(self.path, "", f"the image {shown(spelt)} is not a path")
        return Found(path, below)

    def _outside(self, image: Path, spelt: object) -> Found:
        """--image-root is advised only where it helps."""
        if member_of(image) is None and not os.path.lexists(image):
            return Found(self.path, str(spelt), f"no image at {printable(str(image))}; correct the path", missing=True)
        common = os.path.commonpath([self._real, image.resolve().parent])
        advice = f"use --image-root {common}" if common != "/" else "copy it there"
        return Found(self.path, str(spelt), f"{shown(spelt)} leads out of {self.path}; {advice}")

    def _below(self, image: Path) -> str | None:
        """The path below the root of where a file, or the shard of a member, truly is; None if that is outside."""
        member = member_of(image)
        if member is not None:
            shard = self._below(member.shard)
            return (
                None if shard is None else Member(Path(shard), member.offset, member.size).path(image.name).as_posix()
            )
        real, below = self._resolved(image.parent)
        if image.name not in ("", "..") and not os.path.islink(f"{real}/{image.name}"):  # noqa: PTH114  (much faster)
            return None if below is None else f"{below}{image.name}"
        target = image.resolve()
        return target.relative_to(self._real).as_posix() if target.is_relative_to(self._real) else None

    def _through_link(self, image: Path) -> str | None:
        """The path below the root of a link, or of a file in a linked folder; the first of several to one file."""
        if ".." in image.parts or member_of(image) is not None or not image.is_relative_to(self.path):
            return None
        target = image.resolve()
        return self._linked.setdefault(target, image.relative_to(self.path).as_posix()) if target.is_file() else None

    def _resolve_folder(self, folder: Path) -> tuple[str, str | None]:
        """A folder's real path, and the prefix of its files' names below the root; None if it is outside."""
        real = folder.resolve()
        if not real.is_relative_to(self._real):
            return str(real), None
        below = real.relative_to(self._real).as_posix()
        return str(real), "" if below == "." else f"{below}/"


def is_url(spelt: str) -> bool:
    return spelt.lstrip()[:8].casefold().startswith(URLS)


def is_inline(spelt: str) -> bool:
    return spelt.lstrip()[:8].casefold().startswith(_INLINE)


def shown(value: object) -> str:
    """A value from a file, short and safe to print."""
    return printable(repr(value), limit=80)
