"""The pairs of a stream as columns, and what was measured of their images: about 250 bytes a pair."""

from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip_core.data.check_images import FACTS, ImageFacts, Measured
from clip_core.data.embedding_file import EmbeddingFile
from clip_core.data.image_files import key_of, member_path
from clip_core.data.listed import ListedPairs, MemberBlock, Texts
from clip_core.data.pairs import Pair

_BLOCK = 4096  # pairs of one block


class Seen(NamedTuple):
    """What is kept of a sample; without a valid caption neither `facts` nor a `failure`."""

    name: str
    offset: int
    size: int
    captions: list[str]
    bad: list[str]
    facts: tuple[object, ...] | None = None
    failure: str = ""
    embedding: NDArray[np.float32] | None = None


@dataclass
class _Rows:
    """Pairs that are not a block yet."""

    names: list[str]
    captions: list[str]
    offsets: "array[int]"
    sizes: "array[int]"

    @classmethod
    def empty(cls) -> "_Rows":
        return cls([], [], array("Q"), array("I"))


class StreamTable:
    """Pairs and images in their order: of one shard while it is read, or of all before it."""

    def __init__(self, shard: str = "", name: str = "", embeddings: EmbeddingFile | None = None) -> None:
        """
        Args:
            shard, name: its path or URL, and its name below the folder that all shards are in.
            embeddings: of images that were embedded.
        """
        self.embeddings = embeddings
        self._embedded = array("q")
        self.count = self.images = 0
        self._shard, self._name = shard, name
        self._parts: list[MemberBlock | Pair] = []
        self._rows = _Rows.empty()
        self._facts = np.zeros(0, dtype=FACTS)
        self._firsts = array("q")
        self._failures: dict[int, str] = {}

    def add(self, seen: Seen) -> None:
        """The next sample."""
        if seen.captions:
            self._firsts.append(self.count)
            if self.embeddings is not None:
                self._embedded.append(-1 if seen.embedding is None else self.embeddings.add(seen.embedding))
            _grow(self._facts, self.images + 1)
            if seen.facts is None:
                self._failures[self.images] = seen.failure
            else:
                self._facts[self.images] = seen.facts
            self.images += 1
        rows, entry = self._rows, self.count + 1
        for caption in seen.captions:
            rows.names.append(seen.name)
            rows.captions.append(caption)
            rows.offsets.append(seen.offset)
            rows.sizes.append(seen.size)
        self.count += len(seen.captions)
        if len(rows.names) >= _BLOCK or seen.bad:
            self.flush()
        for problem in seen.bad:
            path = member_path(self._shard, seen.offset, seen.size, seen.name) if seen.offset else self._shard
            name, where = f"{self._name}/{seen.name}", f"{self._name}, {key_of(seen.name)}"
            self._parts.append(Pair(path, "", entry, name, problem, where))
            self.count += 1

    def flush(self) -> None:
        """Make a block of the last pairs."""
        rows, self._rows = self._rows, _Rows.empty()
        if rows.names:
            start = self.count - len(rows.names) + 1
            names, captions = Texts(rows.names), Texts(rows.captions)
            self._parts.append(
                MemberBlock(names, captions, start, self._name, rows.offsets, None, self._shard, rows.sizes)
            )

    def join(self, other: "StreamTable") -> None:
        """Add the pairs and images of the next shard."""
        other.flush()
        _grow(self._facts, self.images + other.images)
        self._facts[self.images : self.images + other.images] = other._facts[: other.images]
        self._firsts.extend(first + self.count for first in other._firsts)
        self._failures |= {self.images + row: why for row, why in other._failures.items()}
        self._embedded.extend(other._embedded)
        for part in other._parts:
            entry = part.entry + self.count
            self._parts.append(part._replace(entry=entry) if isinstance(part, Pair) else replace(part, entry=entry))
        self.count += other.count
        self.images += other.images

    def pairs(self) -> ListedPairs:
        """All pairs, after the last shard."""
        listed = ListedPairs(Path())
        for part in self._parts:
            if isinstance(part, Pair):
                listed.append(part)
            else:
                listed.extend(part)
        return listed

    def measured(self) -> Measured:
        """All images, after the last shard."""
        self._facts.resize(self.images, refcheck=False)
        embedded = np.array(self._embedded, dtype=np.int64)
        images = ImageFacts(self._facts, self._failures, embedded, self.embeddings)
        return Measured(np.array(self._firsts, dtype=np.int64), images)


def _grow(facts: "np.ndarray[tuple[int], np.dtype[np.void]]", count: int) -> None:
    """Room for so many rows, in place: a copy would take the memory twice."""
    if count > len(facts):
        facts.resize(max(count, len(facts) * 5 // 4 + 64), refcheck=False)
