"""WebDataset shards: tar files in which cat.jpg and cat.txt (or cat.json) are a pair.

Members are read where they lie. Nothing is extracted, and no member but images, .txt and .json is ever opened:
a .pkl or .pyd stays what it is, some bytes.
Source: the format of github.com/webdataset/webdataset.
"""

import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from clip_core.data.formats.collect import shown
from clip_core.data.formats.source import Contents, Source
from clip_core.data.image_files import SUFFIXES, Member
from clip_core.data.pairs import Pair
from clip_core.errors import DataError

SHAPE = "WebDataset shards: a .tar, a folder of .tar, or a pattern like shards/{000..012}.tar"
_MOST_BYTES = 1_000_000  # of a caption
_MOST_SHARDS = 100_000
_CAPTION_KEYS = ("caption", "text", "TEXT", "captions")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_BLOCK = 512
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


@dataclass
class _Sample:
    """The members that share a name up to its first dot."""

    image: Member | None = None
    name: str = ""
    caption: object = None
    problem: str | None = None


def detect(source: Source) -> str | None:
    if source.path.name.lower().endswith(_COMPRESSED) and source.path.is_file():
        raise DataError(f"{source.path} is compressed, so nothing in it can be read in place; unpack it first.")
    shards = find_shards(source.path)
    return f"{len(shards):,} .tar {'shard' if len(shards) == 1 else 'shards'}" if shards else None


def read(source: Source) -> Contents:
    """Every sample of every shard, in their order.

    Raises:
        DataError: naming the shard that is missing, compressed or damaged.
    """
    pairs: list[Pair] = []
    shards = find_shards(source.path)
    if not shards:
        raise DataError(f"no .tar at {source.path}; it should be {SHAPE}.")
    for shard in shards:
        samples = _samples(shard)
        if not samples:
            raise DataError(f"{shard} holds no images with captions; it should hold cat.jpg and cat.txt, and so on.")
        for key, sample in samples.items():
            pairs += _pairs(shard, key, sample, len(pairs) + 1)
    return Contents(pairs, shards[0].parent)


def find_shards(path: Path) -> list[Path]:
    """The .tar files that a path, a folder or a pattern names, absolute and sorted; none if it names no such file."""
    if path.is_dir():
        found = [item for item in path.iterdir() if item.suffix.lower() == ".tar" and item.is_file()]
    elif path.is_file() or not _is_pattern(path):
        found = [path] if path.suffix.lower() == ".tar" and path.is_file() else []
    else:
        names = itertools.islice(_expand(str(path)), _MOST_SHARDS)
        every = [file for name in names for file in (_glob(name) if _has_wildcard(name) else [Path(name)])]
        found = [item for item in every if item.suffix.lower() == ".tar"]
        missing = next((item for item in found if not item.is_file()), None)
        if missing is not None:
            raise DataError(f"no shard at {missing}, which {path} names; fetch it, or correct the pattern.")
    return sorted({item.absolute() for item in found})


def _is_pattern(path: Path) -> bool:
    return path.suffix.lower() == ".tar" and bool(_BRACES.search(str(path)) or _has_wildcard(str(path)))


def _has_wildcard(name: str) -> bool:
    return any(letter in name for letter in "*?[")


def _glob(name: str) -> Iterator[Path]:
    anchor = Path(name).anchor
    return Path(anchor).glob(str(Path(name).relative_to(anchor)))


def _expand(pattern: str) -> Iterator[str]:
    """`{000..012}` and `{a,b}` spelt out, as a shell does."""
    found = _BRACES.search(pattern)
    if not found:
        yield pattern
        return
    span = _RANGE.fullmatch(found[1])
    if span:
        first, last = int(span[1]), int(span[2])
        parts: Iterator[str] = (f"{number:0{len(span[1])}d}" for number in range(first, last + 1))
    else:
        parts = iter(found[1].split(","))
    for part in parts:
        yield from _expand(pattern[: found.start()] + part + pattern[found.end() :])


# ---------------------------------------------------------------- one shard


def _samples(shard: Path) -> dict[str, _Sample]:
    """Samples by key, in the shard's order.

    Raises:
        DataError: if the shard is no tar file, compressed or damaged.
    """
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(shard, "r:", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                if member.isfile() and not member.issparse():
                    _take(tar, shard, member, samples)
                cast(Any, tar).members = []  # a shard has many, and each is looked at once
            end = tar.offset
        _check_end(shard, end)
    except tarfile.TarError as error:
        raise DataError(f"{shard} is not a whole, uncompressed tar file ({error}); unpack or fetch it again.") from None
    except OSError as error:
        raise DataError(f"{shard} cannot be read ({error.strerror or error}); fetch it again.") from None
    return {key: sample for key, sample in samples.items() if sample.image or sample.caption is not None}


def _take(tar: tarfile.TarFile, shard: Path, member: tarfile.TarInfo, samples: dict[str, _Sample]) -> None:
    """Note a member that is an image or a caption; leave any other alone."""
    folder, _, last = member.name.rpartition("/")
    stem, _, extension = last.partition(".")
    suffix = "." + extension.rpartition(".")[2].lower()
    if not stem or (suffix not in SUFFIXES and suffix not in (".txt", ".json")):
        return
    sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, _Sample())
    if suffix in SUFFIXES:
        if sample.image is None:
            sample.image, sample.name = Member(shard, member.offset_data, member.size), member.name
    elif suffix == ".txt" or sample.caption is None:
        sample.caption, sample.problem = _caption(tar, member, suffix)


def _caption(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> tuple[object, str | None]:
    """The caption of a .txt, or of a .json under a known key; and what is wrong with it."""
    content = tar.extractfile(member)
    if member.size > _MOST_BYTES or content is None:
        return "", f"its caption has {member.size:,} bytes"
    try:
        text = content.read().decode("utf-8-sig")
        if suffix == ".txt":
            return " ".join(text.split()), None
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "", f"its {suffix} is not {'text in UTF-8' if suffix == '.txt' else 'JSON'}"
    known = next((value[key] for key in _CAPTION_KEYS if key in value), None) if isinstance(value, dict) else value
    return known, None


def _check_end(shard: Path, end: int) -> None:
    """tarfile takes a damaged header for the end of the archive; the true end is empty or zeros."""
    with shard.open("rb") as handle:
        handle.seek(end)
        if handle.read(_BLOCK).strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {end:,}")


def _pairs(shard: Path, key: str, sample: _Sample, entry: int) -> list[Pair]:
    where = f"{shard.name}, {key}"
    if sample.image is None:
        return [Pair(shard, "", entry, f"{shard.name}/{key}", "it has a caption and no image", where)]
    image, name = sample.image.path(sample.name), f"{shard.name}/{sample.name}"
    if sample.caption is None:
        return [Pair(image, "", entry, name, "it has no .txt or .json with a caption", where)]
    captions = sample.caption if isinstance(sample.caption, list) else [sample.caption]
    pairs = []
    for caption in captions or [""]:
        text = caption.strip() if isinstance(caption, str) else ""
        wrong = "the caption is empty" if isinstance(caption, str) else f"the caption {shown(caption)} is not a text"
        pairs.append(Pair(image, text, entry, name, sample.problem or (None if text else wrong), where))
    return pairs
