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

from clip_core.data.formats.caption_files import match
from clip_core.data.formats.captions import clean_caption
from clip_core.data.formats.columns import split_of_file
from clip_core.data.formats.shard import Sample, Shard, read_shard
from clip_core.data.formats.source import Contents, Source
from clip_core.data.pairs import Pair
from clip_core.errors import DataError
from clip_core.text import printable

SHAPE = "WebDataset shards: a .tar, a folder of .tar, or a pattern like shards/{000..012}.tar"
MOST_SHARDS = 100_000
SIZES = "sizes.json"  # beside shards: the pairs of each, by its name
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


def detect(source: Source) -> str | None:
    if source.path.name.lower().endswith(_COMPRESSED) and source.path.is_file():
        raise DataError(f"{source.path} is compressed, so nothing in it can be read in place; unpack it first.")
    shards = find_shards(source.path)
    if source.path.is_dir() and shards and not _are_the_data(source, len(shards)):
        return None
    return f"{len(shards):,} .tar {'shard' if len(shards) == 1 else 'shards'}" if shards else None


def read(source: Source) -> Contents:
    """Every sample of every shard, in their order.

    Raises:
        DataError: naming the shard that is missing, compressed or damaged.
    """
    pairs: list[Pair] = []
    columns: dict[str, str] = {}
    found = find_shards(source.path)
    if not found:
        raise DataError(f"no .tar at {source.path}; it should be {SHAPE}.")
    root = source.path.absolute() if source.path.is_dir() else found[0].parent
    without_samples: list[Shard] = []  # without their samples
    not_read = _beside(source.path, found)
    for path in found:
        shard = read_shard(path)
        if not shard.samples:
            again = " (its keys come again, and no image and caption in a row)" if shard.repeated else ""
            raise DataError(
                f"{path} holds no images with captions{again}; it should hold cat.jpg and cat.txt, and so on."
            )
        below = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        split = split_of_file(source.path.absolute(), path) if len(found) > 1 else None
        if split is not None:
            columns = {"split": "the shards' names"}
        for sample in shard.samples:
            pairs += _pairs(path, below, sample, len(pairs) + 1, split)
        not_read.update(shard.not_read)
        without_samples.append(replace(shard, samples=[]))
    return Contents(pairs, root, columns, notes=_notes(without_samples), not_read=dict(not_read))


def find_shards(path: Path) -> list[Path]:
    """The .tar files that a path, a folder or a pattern names, absolute and sorted; none if it names no such file."""
    if path.is_dir():
        found = _tars(path)
        if not found:  # in a folder for each split, or for each part
            found = [tar for item in path.iterdir() if item.is_dir() and item.name[:1] != "." for tar in _tars(item)]
    elif path.is_file() or not _is_pattern(path):
        found = [path] if path.suffix.lower() == ".tar" and path.is_file() else []
    else:
        names = itertools.islice(expand(str(path)), MOST_SHARDS)
        every = [file for name in names for file in (_glob(name) if has_wildcard(name) else [Path(name)])]
        found = [item for item in every if item.suffix.lower() == ".tar"]
        missing = [item for item in found if not item.is_file()]
        if missing:
            more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
            raise DataError(f"no shard at {missing[0]}{more}, which {path} names; fetch it, or correct the pattern.")
    return sorted({item.absolute() for item in found})


def _tars(folder: Path) -> list[Path]:
    try:
        return [item for item in folder.iterdir() if item.suffix.lower() == ".tar" and item.is_file()]
    except OSError:
        return []


def _are_the_data(source: Source, shards: int) -> bool:
    """Whether shards in a folder are what it holds, and not an archive beside images or their list."""
    folder = source.folder
    return not folder.images or (len(folder.images) <= shards and not match(folder).of)


def _is_pattern(path: Path) -> bool:
    return path.suffix.lower() == ".tar" and bool(_BRACES.search(str(path)) or has_wildcard(str(path)))


def has_wildcard(name: str) -> bool:
    return any(letter in name for letter in "*?[")


def _glob(name: str) -> Iterator[Path]:
    anchor = Path(name).anchor
    return Path(anchor).glob(str(Path(name).relative_to(anchor)))


def expand(pattern: str) -> Iterator[str]:
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
        yield from expand(pattern[: found.start()] + part + pattern[found.end() :])


# ---------------------------------------------------------------- pairs


def _pairs(shard: Path, below: str, sample: Sample, entry: int, split: str | None) -> list[Pair]:
    again = f" #{sample.repeat}" if sample.repeat > 1 else ""
    where = f"{below}, {sample.key}{again}"
    part, caption = sample.image, sample.caption
    if part is None or part.image is None:
        return [
            Pair(str(shard), "", entry, f"{below}/{sample.key}{again}", "it has a caption and no image", where, split)
        ]
    image, name = str(part.image.path(part.name)), f"{below}/{part.name}{again}"
    if caption is None:
        return [Pair(image, "", entry, name, "it has no .txt or .json with a caption", where, split)]
    texts = caption.caption if isinstance(caption.caption, list) else [caption.caption]
    pairs = []
    for value in texts or [""]:
        text, mistake = clean_caption(value)
        pairs.append(Pair(image, text, entry, name, caption.problem or mistake, where, split))
    return pairs


def _beside(path: Path, shards: list[Path]) -> Counter[str]:
    """The other files of a folder with shards, by suffix."""
    if not path.is_dir():
        return Counter()
    names = {shard.name for shard in shards if shard.parent == path.absolute()} | {SIZES}
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
