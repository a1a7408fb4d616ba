"""Misspelt image paths: the one rule that repairs them, or the nearest spelling that exists.

A rule is a form (backslashes read as /, %20 decoded, ...), a key under which two names count as the same (case and
Unicode form, a missing suffix), and a folder added or removed at the front. It is applied only where it gives every
missing image a file of its own; nothing is guessed image by image.
"""

import difflib
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple
from urllib.parse import unquote

from clip_core.data.formats.image_root import ImageRoot, shown
from clip_core.data.image_files import SUFFIXES

_MOST_FILES = 1_000_000  # below a root; in a larger one only the forms are tried
_MOST_FOLDERS = 100_000
_MOST_PLACES = 50  # folders that a name is found in
_MOST_COMPARED = 20_000  # names that a misspelt one is compared with
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})
_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
_FILE = re.compile(r"^file:(?://(?:localhost)?)?(?=/)", re.IGNORECASE)


class Rule(NamedTuple):
    names: dict[str, str]  # by the spelling of the list: the path below the root
    note: str


class Spelling:
    """The missing images of a list, and the files below its root."""

    def __init__(self, place: ImageRoot, missing: list[str]) -> None:
        self._place, self._missing = place, missing
        self._compared = 0

    def rule(self, taken: set[str]) -> Rule | None:
        """The rule that repairs every missing image; of forms alone, one that repairs half.

        Args:
            taken: names below the root that other entries of the list already have.
        """
        for form, words in _FORMS:
            names = {}
            for spelt in self._missing:
                place = self._place.find(form(spelt)) if form(spelt) != spelt else None
                if place is not None and place.problem is None:
                    names[spelt] = place.name
            if names and len(names) >= len(self._missing) / 2:
                return self._note(names, words)
        suffixed = any(_stem(spelt) != spelt for spelt in self._missing)
        for key, key_words in _KEYS[:2] if suffixed else _KEYS:
            files = self._by(key)
            for form, form_words in _FORMS_OR_NONE:
                keys = {name: key(self._tidy(form(name))) for name in self._missing}
                rules = [
                    (self._targets(keys, files, old, new, taken), old, new)
                    for old, new in self._fronts(keys[self._missing[0]], key)
                ]
                fitting = [(found, old, new) for found, old, new in rules if found is not None]
                unchanged = [one for one in fitting if not one[1] and not one[2]]
                chosen = (unchanged or fitting)[:1] if len(unchanged or fitting) == 1 else []
                for targets, old, new in chosen:
                    front = f"{new} in place of {old}" if old and new else f"{old} removed" if old else ""
                    front = front or (f"{new} added" if new else "")
                    return self._note(targets, ", ".join(filter(None, (form_words, key_words, front))))
        return None

    def nearest(self, spelt: str) -> str | None:
        """The existing path below the root that is most like a missing one; None where none is."""
        if not self._files:
            return None
        forms = [self._tidy(form(spelt)) for form, _ in _FORMS_OR_NONE]
        for key, _ in _KEYS:
            names = self._by(key)
            last = self._by_last(key)
            for form in forms:
                same = names.get(key(form)) or last.get(key(form).rpartition("/")[2])
                if same:
                    return shown(same[0])
        name = forms[-1].rpartition("/")[2]
        last = self._by_last(_folded)
        if self._compared + len(last) > _MOST_COMPARED * 10 or len(last) > _MOST_COMPARED:
            return None
        self._compared += len(last)
        close = difflib.get_close_matches(_folded(name), last, 1, 0.8)
        return shown(last[close[0]][0]) if close else None

    def _note(self, names: dict[str, str], words: str) -> Rule:
        spelt, name = next(iter(names.items()))
        count = f"{len(names):,} image path{'s' if len(names) > 1 else ''}"
        return Rule(names, f"{count} repaired ({words}): {shown(spelt)} is read as {shown(name)}.")

    def _tidy(self, spelt: str) -> str:
        """Without ./ and the root in front."""
        tidy = posixpath.normpath(spelt)
        root = str(self._place.path).rstrip("/") + "/"
        return tidy[len(root) :] if tidy.startswith(root) else tidy

    def _targets(
        self, spelt: dict[str, str], files: dict[str, list[str]], old: str, new: str, taken: set[str]
    ) -> dict[str, str] | None:
        """The file of each missing image after the front is exchanged; None unless each has one of its own."""
        names: dict[str, str] = {}
        used = set(taken)
        for name, key in spelt.items():
            if not key.startswith(old):
                return None
            same = files.get(new + key[len(old) :], ())
            if len(same) != 1 or same[0] in used:
                return None
            used.add(same[0])
            names[name] = same[0]
        return names

    def _fronts(self, first: str, key: Callable[[str], str]) -> Iterator[tuple[str, str]]:
        """What may be exchanged for what at the front, so that the first missing image is found: folders, with a /.

        A folder is exchanged for another only where the paths come from another machine, and never where that could
        give the images of one split to another.
        """
        parts = first.split("/")
        places = self._by_last(key).get(parts[-1], [])
        if len(places) > _MOST_PLACES:
            return
        for place in places:
            other = key(place).split("/")
            same = 0
            while same < min(len(parts), len(other)) and parts[-1 - same] == other[-1 - same]:
                same += 1
            old, new = parts[: len(parts) - same], other[: len(other) - same]
            if old and new and not first.startswith("/"):
                continue
            if {*map(str.casefold, (*old, *new))} & _SPLITS and (new or old[-1] != self._place.path.name):
                continue
            yield "".join(f"{part}/" for part in old), "".join(f"{part}/" for part in new)

    @cached_property
    def _files(self) -> list[str]:
        """Every image below the root; none where there are too many to be sure."""
        root, files = str(self._place.path), []
        for folders, (place, inner, names) in enumerate(os.walk(root)):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            below = "" if place == root else os.path.relpath(place, root).replace(os.sep, "/") + "/"
            files += [below + name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES]  # noqa: PTH122
            if len(files) > _MOST_FILES or folders > _MOST_FOLDERS:
                return []
        return files

    def _by(self, key: Callable[[str], str]) -> dict[str, list[str]]:
        return self._tables(key)[0]

    def _by_last(self, key: Callable[[str], str]) -> dict[str, list[str]]:
        return self._tables(key)[1]

    def _tables(self, key: Callable[[str], str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The files by their whole key, and by its last part."""
        if key not in self._known:
            whole: dict[str, list[str]] = {}
            last: dict[str, list[str]] = {}
            for file in self._files:
                spelt = key(file)
                whole.setdefault(spelt, []).append(file)
                last.setdefault(spelt.rpartition("/")[2], []).append(file)
            self._known[key] = whole, last
        return self._known[key]

    @cached_property
    def _known(self) -> dict[Callable[[str], str], tuple[dict[str, list[str]], dict[str, list[str]]]]:
        return {}


def _slashes(spelt: str) -> str:
    return spelt.replace("\\", "/")


def _from_address(spelt: str) -> str:
    bare = unquote(_FILE.sub("", spelt))
    return bare[1:] if _DRIVE.match(bare[1:]) else bare


def _without_drive(spelt: str) -> str:
    return _slashes(_DRIVE.sub("/", _from_address(spelt)))


_FORMS: tuple[tuple[Callable[[str], str], str], ...] = (
    (_slashes, "backslashes read as /"),
    (unquote, "%20 and the like decoded"),
    (_from_address, "file:// removed"),
    (_without_drive, "drive letters removed, backslashes read as /"),
)


def _same(spelt: str) -> str:
    return spelt


_FORMS_OR_NONE: tuple[tuple[Callable[[str], str], str], ...] = ((_same, ""), *_FORMS)


def _folded(spelt: str) -> str:
    return unicodedata.normalize("NFC", spelt).casefold()


def _stem(spelt: str) -> str:
    stem, suffix = posixpath.splitext(spelt)
    return stem if suffix.lower() in SUFFIXES else spelt


def _folded_stem(spelt: str) -> str:
    return _stem(_folded(spelt))


# A wrong suffix is no missing one: another file may be meant, so it is named and not repaired.
_KEYS: tuple[tuple[Callable[[str], str], str], ...] = (
    (_same, ""),
    (_folded, "case and Unicode form ignored"),
    (_stem, "suffix added"),
    (_folded_stem, "suffix added, case and Unicode form ignored"),
)
