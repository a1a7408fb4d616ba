"""Tar shards one after the other, each at most so large, of bytes that depend on their content alone."""

import io
import os
import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Self

from clip_core.data.formats.webdataset import MOST_SHARDS
from clip_core.data.splits import SPLITS
from clip_core.errors import DataError, UsageError

SHARD_BYTES = 500_000_000

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmg]i?b)", re.I)
_BLOCK = 512
_FLUSHED = 32_000_000  # bytes that are written to the disk at a time: nothing interrupts that


def parse_size(text: str) -> int:
    """Bytes of `500MB`, `1.5 GB` or `256MiB`.

    Raises:
        UsageError: if it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"--shard-size is {text!r}; give bytes with a unit, as 500MB or 1GiB.")
    return max(round(float(found[1]) * _UNITS[found[2].lower()]), 1)


class Part(NamedTuple):
    """The shards of a split, or of no split."""

    split: str | None
    shards: int
    pairs: int
    images: int

    def pattern(self, out: Path) -> str:
        """What names all of them: a brace pattern, or the only one."""
        first, last = (_shard_name(self.split, number) for number in (0, self.shards - 1))
        if first == last:
            return str(out / first)
        digits = [name.removesuffix(".tar").rpartition("-")[2] for name in (first, last)]
        return str(out / first.replace(digits[0], f"{{{digits[0]}..{digits[1]}}}"))


class ShardWriter:
    """Shards one after the other, each at most so large.

    Attributes:
        sizes: pairs of each shard, by its name.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.sizes: dict[str, int] = {}
        self._folder, self._most = folder, shard_bytes
        self._shards, self._pairs, self._images = (Counter[str | None]() for _ in range(3))
        self._split: str | None = None
        self._handle: io.BufferedWriter | None = None
        self._flushed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._handle is not None and kind is not None:
            self._handle.close()
        elif kind is None:
            self._end()

    def add(self, split: str | None, key: str, members: list[tuple[str, bytes]], pairs: int) -> None:
        blocks = b"".join(_member(key + suffix, content) for suffix, content in members)
        full = self._handle is not None and self._handle.tell() + len(blocks) + 2 * _BLOCK > self._most
        if self._handle is None or full or split != self._split:
            self._end()
            self._begin(split)
        assert self._handle is not None
        self._handle.write(blocks)
        self.sizes[_shard_name(split, self._shards[split] - 1)] += pairs
        self._pairs[split] += pairs
        self._images[split] += 1
        if self._handle.tell() - self._flushed > _FLUSHED:
            self._flush()

    def parts(self) -> list[Part]:
        return [
            Part(split, self._shards[split], self._pairs[split], self._images[split])
            for split in (*SPLITS, None)
            if self._shards[split]
        ]

    def _begin(self, split: str | None) -> None:
        if self._shards[split] == MOST_SHARDS:
            raise DataError(f"there are more than {MOST_SHARDS:,} shards; give a larger --shard-size.")
        name = _shard_name(split, self._shards[split])
        self._handle = (self._folder / name).open("xb")
        self._split, self._flushed = split, 0
        self._shards[split] += 1
        self.sizes[name] = 0

    def _end(self) -> None:
        if self._handle is not None:
            self._handle.write(b"\0" * (2 * _BLOCK))
            self._flush()
            self._handle.close()
            self._handle = None

    def _flush(self) -> None:
        assert self._handle is not None
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._flushed = self._handle.tell()


def _shard_name(split: str | None, number: int) -> str:
    return f"{split}-{number:05d}.tar" if split else f"{number:05d}.tar"


def _member(name: str, content: bytes) -> bytes:
    """A member of a tar file: nobody's, of no time, so that the same content is the same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % _BLOCK)
