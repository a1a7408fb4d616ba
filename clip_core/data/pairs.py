"""Pairs of an image and a caption, sorted into usable and unusable; `formats` has how they are read."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip_core.data.image_files import image_facts
from clip_core.errors import ImageError
from clip_core.text import plural, printable

Hashes = NDArray[np.uint64]


class Pair(NamedTuple):
    """One image with one caption; a tuple, as there may be millions.

    `path` is that of the image, absolute, and may be a member of a shard (see `image_files`); `entry` counts from 1 in
    the list; `name` is the image's path below the image root, the same wherever the folder lies; `problem` says what is
    wrong before any decoding; `where` is the entry in the terms of its format.
    """

    path: str
    caption: str
    entry: int
    name: str = ""
    problem: str | None = None
    where: str = ""
    split: str | None = None  # "train", "val" or "test", where the data set says so

    @property
    def image(self) -> Path:
        return Path(self.path)

    @property
    def place(self) -> str:
        return self.where or f"entry {self.entry}"


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
        return usable_sentence(len(self.good), len({pair.path for pair in self.good}), self.bad)


def usable_sentence(usable: int, images: int, bad: Sequence[BadPair]) -> str:
    """So many usable pairs and images, and the first of the others; safe to print."""
    text = f"{plural(usable, 'usable pair')} with {plural(images, 'image')}"
    if not bad:
        return f"{text}."
    are = "is" if len(bad) == 1 else "are"
    return (
        f"{text}; {len(bad):,} of {usable + len(bad):,} pairs {are} unusable, "
        f"first {printable(bad[0].pair.place)}: {printable(bad[0].reason)}."
    )


def sort_pairs(pairs: Iterable[Pair], failures: Mapping[Path, str]) -> Report:
    """Separate usable pairs from the others, given the images that could not be decoded and why."""
    report = Report([], [])
    by_path = {str(path): reason for path, reason in failures.items()}
    for pair in pairs:
        reason = pair.problem or by_path.get(pair.path)
        if reason is None:
            report.good.append(pair)
        else:
            report.bad.append(BadPair(pair, reason))
    return report


def distinct_images(pairs: Iterable[Pair]) -> list[Path]:
    """The images worth decoding, each once, in the list's order."""
    return list(map(Path, dict.fromkeys(pair.path for pair in pairs if pair.problem is None)))


def fingerprint(pairs: Sequence[Pair]) -> str:
    """The identity of a pair set: sha256 over its sorted (name, size of the image file, caption), 64 hex digits.

    Equal wherever the folder lies and in whatever order the pairs are listed. Nothing is decoded; pairs already known
    to be unusable are left out, and a missing image counts with its name.
    """
    sizes: dict[str, str] = {}
    lines = []
    for pair in pairs:
        if pair.problem is not None:
            continue
        if pair.path not in sizes:
            try:
                sizes[pair.path] = str(image_facts(pair.image)[0])
            except (OSError, ValueError):
                sizes[pair.path] = "missing"
        lines.append("\0".join((pair.name or pair.image.name, sizes[pair.path], pair.caption)))
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line.encode("utf-8", "surrogateescape") + b"\0\0")
    return digest.hexdigest()


def pair_hashes(pairs: Sequence[Pair]) -> Hashes:
    """Eight bytes for each pair: of its image's name below the image root, the size of the file, and the caption.

    Returns:
        uint64 (P,); the same wherever the folder of the images is.
    """
    sizes: dict[Path, int] = {}
    hashes = np.empty(len(pairs), dtype=np.uint64)
    for row, pair in enumerate(pairs):
        if pair.image not in sizes:
            sizes[pair.image] = _file_size(pair.image)
        text = f"{pair.name or pair.image.name}\0{sizes[pair.image]}\0{pair.caption}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        hashes[row] = int.from_bytes(digest, "little")
    return hashes


def _file_size(image: Path) -> int:
    """Bytes of an image file; 0 for a member of a shard, whose name includes its place."""
    try:
        return image.stat().st_size
    except OSError:
        return 0


def decoding_threads(workers: int | None) -> int:
    """Threads that decode: as many as asked for, or one for each core this process may use."""
    if workers is not None:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reason(error: ImageError) -> str:
    """An error's sentence as a part of a longer one."""
    return str(error).rstrip(".")
