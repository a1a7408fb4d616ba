"""WebDataset shards: tar files in which cat.jpg and cat.txt (or cat.json) are a pair.

Members are read where they lie. Nothing is extracted, and no member but images, .txt and .json is ever opened:
a .pkl or .pyd stays what it is, some bytes.
Source: the format of github.com/webdataset/webdataset.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clip_core.data.formats.collect import shown
from clip_core.data.formats.shard import Sample, Shard, read_shard
from clip_core.data.formats.source import Contents, Source
from clip_core.data.pairs import Pair
from clip_core.errors import DataError
from clip_core.text import printable

SHAPE = "WebDataset shards: a .tar, a folder of .tar, or a pattern like shards/{000..012}.tar"
_MOST_SHARDS = 100_000
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


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
    found = find_shards(source.path)
    if not found:
        raise DataError(f"no .tar at {source.path}; it should be {SHAPE}.")
    without_samples: list[Shard] = []  # without their samples
    not_read = _beside(source.path, found)
    for path in found:
        shard = read_shard(path)
        if not shard.samples:
            again = " (its keys come again, and no image and caption in a row)" if shard.repeated else ""
            raise DataError(
                f"{path} holds no images with captions{again}; it should hold cat.jpg and cat.txt, and so on."
            )
        for sample in shard.samples:
            pairs += _pairs(path, sample, len(pairs) + 1)
        not_read.update(shard.not_read)
        without_samples.append(replace(shard, samples=[]))
    return Contents(pairs, found[0].parent, notes=_notes(without_samples), not_read=dict(not_read))


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


# ---------------------------------------------------------------- pairs


def _pairs(shard: Path, sample: Sample, entry: int) -> list[Pair]:
    again = f" #{sample.repeat}" if sample.repeat > 1 else ""
    where = f"{shard.name}, {sample.key}{again}"
    part, caption = sample.image, sample.caption
    if part is None or part.image is None:
        return [Pair(shard, "", entry, f"{shard.name}/{sample.key}{again}", "it has a caption and no image", where)]
    image, name = part.image.path(part.name), f"{shard.name}/{part.name}{again}"
    if caption is None:
        return [Pair(image, "", entry, name, "it has no .txt or .json with a caption", where)]
    texts = caption.caption if isinstance(caption.caption, list) else [caption.caption]
    pairs = []
    for value in texts or [""]:
        text = value.strip() if isinstance(value, str) else ""
        wrong = "the caption is empty" if isinstance(value, str) else f"the caption {shown(value)} is not a text"
        pairs.append(Pair(image, text, entry, name, caption.problem or (None if text else wrong), where))
    return pairs


def _beside(path: Path, shards: list[Path]) -> Counter[str]:
    """The other files of a folder with shards, by suffix."""
    if not path.is_dir():
        return Counter()
    names = {shard.name for shard in shards}
    others = (item for item in path.iterdir() if item.name not in names and not item.name.startswith("."))
    return Counter(item.suffix.lower() or "files without a suffix" for item in others if item.is_file())


def _notes(shards: list[Shard]) -> list[str]:
    """What was assumed, each with the first shard that it is about."""
    notes = []
    dotted = [shard for shard in shards if shard.at_last_dot]
    if dotted:
        notes.append(f"names have dots: keys go to the last dot, not the first ({_named(dotted)})")
    joined = [shard for shard in shards if shard.archives > 1]
    if joined:
        notes.append(f"archives that were joined are read to the end ({_named(joined)})")
    repeated = [shard for shard in shards if shard.repeated]
    if repeated:
        count = sum(len(shard.repeated) for shard in repeated)
        said = f"{count:,} keys come again, first {printable(repeated[0].repeated[0], 60)}"
        notes.append(f"{said}; image and caption in a row are a sample each time ({_named(repeated)})")
    return notes


def _named(shards: list[Shard]) -> str:
    first = printable(shards[0].path.name, 60)
    return first if len(shards) == 1 else f"{first} and {len(shards) - 1:,} more"
