"""Any data set written as WebDataset shards, which are trained on indexed or streamed.

An image and its captions are one sample: 000000041.jpg with 000000041.txt, and where there are several captions, all of
them in 000000041.json; the .txt then has the first, for programs that read nothing else. The same pairs, seed and size
give the same bytes. The folder appears, whole, when everything in it is on the disk.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_core.config import streamed_pattern
from clip_core.data.formats.caption_files import MOST_BYTES, decode_text
from clip_core.data.formats.detect import Reading
from clip_core.data.formats.webdataset import SIZES
from clip_core.data.image_files import SUFFIXES, read_content, suffix_of_content
from clip_core.data.pairs import BadPair, Pair
from clip_core.data.progress import Progress, no_progress
from clip_core.data.shard_writer import SHARD_BYTES, Part, ShardWriter
from clip_core.data.splits import SPLITS
from clip_core.data.stream.samples import MOST_IMAGE
from clip_core.errors import DataError, ImageError, UsageError
from clip_core.files import flush_directory, scratch_folder, write_json
from clip_core.text import plural

_ONE_SUFFIX = {".jpeg": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}  # many readers know one of them
_PATTERN = frozenset("{}*?[]")  # what names of shards are patterns by


@dataclass
class WrittenShards:
    """What was written, and which pairs were not, the first with a reason."""

    out: Path
    seed: int | None
    parts: list[Part] = field(default_factory=list)
    left_out: int = 0
    first_left_out: BadPair | None = None
    without_split: int = 0  # pairs that were written as those of train

    def leave_out(self, pairs: Sequence[Pair], reason: str) -> None:
        self.left_out += len(pairs)
        self.first_left_out = self.first_left_out or BadPair(pairs[0], reason)

    def lines(self) -> list[str]:
        """What was written and left out, the pattern of each split, and the command that trains on them."""
        pairs, images = sum(part.pairs for part in self.parts), sum(part.images for part in self.parts)
        shuffled = "in the order of the data set" if self.seed is None else f"shuffled by seed {self.seed}"
        lines = [f"wrote {plural(pairs, 'pair')} of {plural(images, 'image')} to {self.out}, {shuffled}."]
        if self.first_left_out is not None:
            place, reason = self.first_left_out.pair.place, self.first_left_out.reason
            lines.append(f"left out {plural(self.left_out, 'unusable pair')}, first {place}: {reason}.")
        if self.without_split:
            lines.append(f"{plural(self.without_split, 'pair')} without a split are with those of train.")
        if self.seed is None:
            lines.append("a stream shuffles within its buffer only: a set sorted by class trains badly in this order.")
        patterns = {part.split: shlex.quote(part.pattern(self.out)) for part in self.parts}
        for part in self.parts:
            counts = f"{plural(part.pairs, 'pair')} in {plural(part.shards, 'shard')}"
            lines.append(f"  {part.split or 'pairs':6} {patterns[part.split]}  {counts}")
        train = next(name for name in ("train", None, "val", "test") if name in patterns)
        val = next((name for name in ("val", "test") if name in patterns and name != train), None)
        command = f"clip-train --data {patterns[train]}" + (f" --val-file {patterns[val]}" if val else "")
        return [*lines, "train on them (without --stream they are indexed first):", f"  {command} --stream"]


def write_shards(
    reading: Reading,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    seed: int | None = 0,
    progress: Progress = no_progress,
) -> WrittenShards:
    """Write the usable pairs of a data set as shards; images are copied byte for byte, and none is decoded.

    Args:
        reading: what to write; its splits are kept, each in shards of its own.
        out: the folder to make; it may be there already if it is empty.
        shard_bytes: of a shard, at most; a larger sample is a shard of its own.
        seed: of the order; None keeps the order of the data set.
        progress: called with the images written so far, and all.
    Raises:
        UsageError: if shards cannot be written there.
        DataError: if no pair is usable, or writing fails; then there is nothing in `out`.
        KeyboardInterrupt: saying how far it was; there is nothing in `out`.
    """
    target = _target(out)
    written = WrittenShards(out, seed)
    samples = _samples(reading, written)
    done = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder("shards", target.parent) as scratch:
            folder = scratch / "unfinished"  # two levels down: no reader of the folder above looks there
            folder.mkdir()
            with ShardWriter(folder, shard_bytes) as writer:
                for split, number in _order(samples, seed):
                    pairs = [reading.pairs[row] for row in samples[number].rows]
                    members = _members(pairs, written)
                    if members:
                        writer.add(split, f"{number:09d}", members, len(pairs))
                    done += 1
                    progress(done, len(samples))
            written.parts = writer.parts()
            if not written.parts:
                raise _nothing(reading, written)
            write_json(folder / SIZES, writer.sizes)
            flush_directory(folder)
            folder.rename(target)
            flush_directory(target.parent)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{done:,} of {len(samples):,} images were written, and nothing is kept") from None
    except OSError as error:
        why = error.strerror or error
        raise DataError(
            f"{out} cannot be written ({why}), and nothing of it is kept; make room, or give another folder."
        ) from None
    return written


# ---------------------------------------------------------------- which pairs, and where


class _Sample(NamedTuple):
    """An image in a split, and the rows of its pairs."""

    split: str | None
    rows: list[int]


def _target(out: Path) -> Path:
    """The folder as it will be renamed to."""
    text = str(out)
    if streamed_pattern(out) is not None:
        raise UsageError(f"{out} is an address; write the shards to a folder of this machine, and upload that.")
    if _PATTERN & set(text):
        raise UsageError(f"{out} has one of {{}}*?[] in it, which patterns of shards mean something by; rename it.")
    target = out.resolve()
    if target.exists() and not target.is_dir():
        raise UsageError(f"{out} is a file; give the folder for the shards.")
    if target.is_mount():
        raise UsageError(f"{out} is where a disk is mounted; give a folder in it.")
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(f"{out} is not empty; give another folder, or delete it.")
    return target


def _samples(reading: Reading, written: WrittenShards) -> list[_Sample]:
    """The usable pairs by image and split, in the order of the data set; their places are the keys."""
    has_train = any(pair.split == "train" for pair in reading.pairs)
    samples: dict[tuple[str | None, str], _Sample] = {}
    for row, pair in enumerate(reading.pairs):
        if pair.problem is not None:
            written.leave_out([pair], pair.problem)
            continue
        split = pair.split
        if split is None and has_train:  # as training reads them
            split = "train"
            written.without_split += 1
        samples.setdefault((split, pair.path), _Sample(split, [])).rows.append(row)
    if not samples:
        raise _nothing(reading, written)
    return list(samples.values())


def _order(samples: Sequence[_Sample], seed: int | None) -> Iterator[tuple[str | None, int]]:
    """The samples' numbers, split by split, shuffled in each."""
    for split in (*SPLITS, None):
        numbers = [number for number, sample in enumerate(samples) if sample.split == split]
        if seed is not None:
            numbers = np.array(numbers, dtype=np.int64)[np.random.default_rng(seed).permutation(len(numbers))].tolist()
        yield from ((split, number) for number in numbers)


def _nothing(reading: Reading, written: WrittenShards) -> DataError:
    first = written.first_left_out
    why = f", first {first.pair.place}: {first.reason}" if first else ""
    return DataError(f"{reading.path} holds no usable pair{why}; nothing is written.")


# ---------------------------------------------------------------- a sample


def _members(pairs: Sequence[Pair], written: WrittenShards) -> list[tuple[str, bytes]]:
    """The suffixes and contents of a sample; none, and its pairs are counted, if it cannot be used."""
    try:
        content = _image(pairs[0].image)
        return [(_suffix(pairs[0].image, content), content), *_captions([pair.caption for pair in pairs])]
    except (ImageError, OSError) as error:
        missing = isinstance(error, FileNotFoundError)
        why = f"no image at {pairs[0].path}" if missing else getattr(error, "strerror", None) or str(error).rstrip(".")
        written.leave_out(pairs, why)
        return []


def _image(path: Path) -> bytes:
    content = read_content(path)
    if not content:
        raise ImageError(f"{path} is empty.")
    if len(content) > MOST_IMAGE:
        raise ImageError(f"{path} has more than {MOST_IMAGE:,} bytes, which no stream reads.")
    return content


def _suffix(path: Path, content: bytes) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        suffix = suffix_of_content(content)
        if suffix not in SUFFIXES:
            raise ImageError(f"{path} is no image by its name and its first bytes.")
    return _ONE_SUFFIX.get(suffix, suffix)


def _captions(captions: list[str]) -> list[tuple[str, bytes]]:
    """A .txt with the first, white space collapsed as it is read, and a .json if that is not all."""
    text = " ".join(captions[0].split())
    content = text.encode("utf-8", "replace")
    try:
        same = decode_text(content) == text
    except ValueError:
        same = False
    members = [(".txt", content)] if same else []
    if captions != [text] or not same:
        members.append((".json", json.dumps({"caption": captions}).encode()))
    if max(len(member) for _, member in members) > MOST_BYTES:
        raise ImageError(f"its captions have more than {MOST_BYTES:,} bytes.")
    return members
