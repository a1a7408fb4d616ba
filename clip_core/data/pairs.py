"""The pair list: JSON `[{"image": ..., "caption": ...}]`, read, and sorted into usable and unusable."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from clip_core.errors import DataError, ImageError
from clip_core.text import printable

_SHAPE = 'it should be [{"image": "photos/1.jpg", "caption": "a cat"}, ...]'


@dataclass(frozen=True)
class Pair:
    """One picture with one caption.

    `image` is absolute; `entry` counts from 1 in the list; `name` is the picture's path below the image root,
    the same wherever the folder lies; `problem` says what was wrong already on reading, before any decoding.
    """

    image: Path
    caption: str
    entry: int
    name: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class BadPair:
    pair: Pair
    reason: str


@dataclass(frozen=True)
class Report:
    """What a check found: the usable pairs, and the others with their reasons, both in the list's order."""

    good: list[Pair]
    bad: list[BadPair]

    @property
    def total(self) -> int:
        return len(self.good) + len(self.bad)

    @property
    def bad_share(self) -> float:
        return len(self.bad) / self.total if self.total else 0.0

    def sentence(self) -> str:
        """The counts, and the first unusable pair with its entry number; safe to print."""
        pictures = len({pair.image for pair in self.good})
        text = f"{len(self.good):,} usable pairs with {pictures:,} pictures"
        if not self.bad:
            return f"{text}."
        first = self.bad[0]
        are = "is" if len(self.bad) == 1 else "are"
        return (
            f"{text}; {len(self.bad):,} of {self.total:,} pairs {are} not usable, "
            f"first entry {first.pair.entry}: {printable(first.reason)}."
        )


def read_pairs(data_file: Path, image_root: Path | None = None) -> list[Pair]:
    """Read a pair list; nothing is decoded.

    Args:
        data_file: JSON list of objects with `image` and `caption`; a list of strings as caption makes as many
            pairs.
        image_root: the folder that image paths start from and may not leave; None is the list's own folder.
    Raises:
        DataError: naming the file and the entry, if it is missing or no such list.
    """
    entries = _json_list(data_file)
    root = image_root if image_root is not None else data_file.parent
    if not root.is_dir():
        raise DataError(f"no folder at {root}; correct --image-root.")
    place = _Root(root)
    pairs: list[Pair] = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not {"image", "caption"} <= entry.keys():
            raise DataError(f"{data_file}, entry {number}: {_shown(entry)} has no image and caption; {_SHAPE}.")
        image, name, problem = place.find(entry["image"])
        captions = entry["caption"] if isinstance(entry["caption"], list) else [entry["caption"]]
        for caption in captions or [""]:
            text, mistake = _caption(caption)
            pairs.append(Pair(image, text, number, name, problem or mistake))
    if not pairs:
        raise DataError(f"{data_file} holds no pairs; {_SHAPE}.")
    return pairs


def sort_pairs(pairs: Iterable[Pair], failures: Mapping[Path, str]) -> Report:
    """Part usable pairs from the others, given the pictures that could not be decoded and why."""
    report = Report([], [])
    for pair in pairs:
        reason = pair.problem or failures.get(pair.image)
        if reason is None:
            report.good.append(pair)
        else:
            report.bad.append(BadPair(pair, reason))
    return report


def check_pairs(
    pairs: Sequence[Pair], *, workers: int | None = None, sizes: dict[Path, tuple[int, int]] | None = None
) -> Report:
    """Decode every picture once, in threads, and say which pairs are usable.

    Args:
        pairs: as `read_pairs` returns them.
        workers: decoding threads; None is one a core.
        sizes: filled with the upright width and height of every readable picture, if given.
    """
    from clip_core.data.preprocess import load_image

    failures: dict[Path, str] = {}

    def look(path: Path) -> None:
        try:
            size = load_image(path).size
        except ImageError as error:
            failures[path] = reason(error)
        else:
            if sizes is not None:
                sizes[path] = size

    with ThreadPoolExecutor(decoding_threads(workers)) as pool:
        for _ in pool.map(look, distinct_images(pairs)):
            pass
    return sort_pairs(pairs, failures)


def distinct_images(pairs: Iterable[Pair]) -> list[Path]:
    """The pictures worth decoding, each once, in the list's order."""
    return list(dict.fromkeys(pair.image for pair in pairs if pair.problem is None))


def decoding_threads(workers: int | None) -> int:
    """Threads that decode: as many as asked for, or one for each core this process may use."""
    if workers is not None:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reason(error: ImageError) -> str:
    """An error's sentence as a part of a longer one."""
    return str(error).rstrip(".")


# ---------------------------------------------------------------- reading


def _json_list(data_file: Path) -> list[Any]:
    try:
        values = json.loads(data_file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"no pair list at {data_file}; correct the path.") from None
    except OSError as error:
        raise DataError(f"{data_file} cannot be read ({error.strerror}); give a JSON pair list.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{data_file}, line {error.lineno}: not JSON ({error.msg}); {_SHAPE}.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{data_file} is not JSON in UTF-8; {_SHAPE}.") from None
    if not isinstance(values, list):
        raise DataError(f"{data_file} is not a list but {_shown(values)}; {_SHAPE}.")
    return values


def _caption(caption: object) -> tuple[str, str | None]:
    if not isinstance(caption, str):
        return "", f"the caption {_shown(caption)} is not a text"
    # Half surrogates can be spelt in JSON but not written as UTF-8.
    text = caption.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()
    return text, None if text else "the caption is empty"


class _Root:
    """Finds pictures below a folder, and only there."""

    def __init__(self, root: Path) -> None:
        self.path = root.absolute()
        self._real = self.path.resolve()
        # Most pictures lie in a few folders: resolving each folder once leaves one question a picture.
        self._real_folder = lru_cache(maxsize=4096)(Path.resolve)

    def find(self, spelt: object) -> tuple[Path, str, str | None]:
        """(absolute path, name below the root, what is wrong or None) of a picture as the list spells it."""
        if not isinstance(spelt, str) or not spelt.strip():
            return self.path, "", f"the image {_shown(spelt)} is not a path"
        image = self.path / spelt
        try:
            real = self._real_folder(image.parent) / image.name
            if image.name == ".." or real.is_symlink():
                real = real.resolve()
            below = real.relative_to(self._real) if real.is_relative_to(self._real) else None
        except (OSError, ValueError, RuntimeError):  # a NUL, half a surrogate, a loop of links
            return self.path, "", f"the image {_shown(spelt)} is not a path"
        if below is None:
            return self.path, spelt, f"{_shown(spelt)} leads out of {self.path}, give a higher --image-root"
        return self.path / below, below.as_posix(), None


def _shown(value: object) -> str:
    """A value from the file, short and safe to print."""
    return printable(repr(value), limit=80)
