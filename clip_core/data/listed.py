"""The pairs of a long list, kept as columns: a `Pair` is made when it is asked for, so that millions take little.

Most pairs of a list need nothing said of each: the image is there, the caption is text. They are kept in blocks, of
which each column is in one piece. The others are `Pair`s as they are.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise, repeat
from pathlib import Path
from typing import overload

from clip_core.data.image_files import key_of, member_path
from clip_core.data.pairs import Pair


class Texts(Sequence[str]):
    """Strings in one piece: a Python string takes 50 to 80 bytes more than its letters."""

    __slots__ = ("_all", "_ends")

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._all = b"".join(encoded)
        self._ends = array("I" if len(self._all) < 1 << 32 else "Q", accumulate(map(len, encoded), initial=0))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        for start, end in pairwise(self._ends):
            yield self._all[start:end].decode("utf-8", "surrogatepass")

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        start, end = self._ends[place], self._ends[place + 1]
        return self._all[start:end].decode("utf-8", "surrogatepass")


@dataclass(slots=True)
class Block:
    """Pairs without a problem, as columns of one length."""

    names: Sequence[str]  # of the images, below the root
    captions: Sequence[str]
    entry: int  # of the first
    where: str  # before a number: "line "; empty where the entry says it
    numbers: Sequence[int]
    splits: Sequence[str | None] | None

    def __len__(self) -> int:
        return len(self.names)

    def pairs(self, root: str) -> Iterator[Pair]:
        """Each pair."""
        columns = zip(self.names, self.captions, self.numbers, self.splits or repeat(None), strict=False)
        for entry, (name, caption, number, split) in enumerate(columns, start=self.entry):
            where = f"{self.where}{number}" if self.where else ""
            yield Pair(f"{root}/{name}", caption, entry, name, None, where, split)

    def at(self, root: str, place: int) -> Pair:
        name, split = self.names[place], self.splits[place] if self.splits else None
        where = f"{self.where}{self.numbers[place]}" if self.where else ""
        return Pair(f"{root}/{name}", self.captions[place], self.entry + place, name, None, where, split)


@dataclass(slots=True)
class MemberBlock(Block):
    """Pairs of members of one shard; `names` are those of the images in it, `numbers` the bytes at which they begin.

    Attributes:
        shard: its path, or its URL without a query.
        sizes: bytes of each image.
    """

    shard: str = ""
    sizes: Sequence[int] = ()

    def pairs(self, root: str) -> Iterator[Pair]:
        for place, (name, caption) in enumerate(zip(self.names, self.captions, strict=True)):
            yield self._pair(place, name, caption)

    def at(self, root: str, place: int) -> Pair:
        return self._pair(place, self.names[place], self.captions[place])

    def _pair(self, place: int, name: str, caption: str) -> Pair:
        path = member_path(self.shard, self.numbers[place], self.sizes[place], name)
        below = self.where
        return Pair(path, caption, self.entry + place, f"{below}/{name}", None, f"{below}, {key_of(name)}")


class ListedPairs(Sequence[Pair]):
    """Pairs in the list's order, of images below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = str(root.absolute()).rstrip("/")
        self._parts: list[Block | list[Pair]] = []
        self._starts: list[int] = []
        self._count = 0

    def append(self, pair: Pair) -> None:
        if not self._parts or isinstance(self._parts[-1], Block):
            self._add([])
        last = self._parts[-1]
        assert isinstance(last, list)
        last.append(pair)
        self._count += 1

    def extend(self, block: Block) -> None:
        names, captions = (
            column if isinstance(column, Texts) else Texts(column) for column in (block.names, block.captions)
        )
        self._add(replace(block, names=names, captions=captions))
        self._count += len(block)

    def replace(self, place: int, pair: Pair) -> None:
        """Exchange a pair that was appended, not one of a block."""
        part, inside = self._find(place)
        assert isinstance(part, list)
        part[inside] = pair

    def placed(self, root: Path, below: str, where: str, before: int) -> "ListedPairs":
        """The same pairs as those of a list in a folder of `root`.

        Args:
            below: the folder's path below `root`, empty or with a / at its end.
            where: said before each pair's place.
            before: added to each entry.
        """
        placed = ListedPairs(root)
        for part in self._parts:
            if isinstance(part, Block):
                names = [below + name for name in part.names] if below else part.names
                said = where + (part.where or "entry ")
                numbers = part.numbers if part.where else range(part.entry, part.entry + len(part))
                placed.extend(replace(part, names=names, entry=part.entry + before, where=said, numbers=numbers))
            else:
                for pair in part:
                    name = below + pair.name if pair.name else ""
                    placed.append(pair._replace(entry=before + pair.entry, name=name, where=where + pair.place))
        return placed

    def join(self, other: "ListedPairs") -> None:
        """Add all pairs of another list below the same root."""
        for part in other._parts:
            if isinstance(part, Block):
                self.extend(part)
            else:
                for pair in part:
                    self.append(pair)

    def with_splits(self, splits: Sequence[str | None]) -> "ListedPairs":
        """The same pairs with these splits, one a pair."""
        changed = ListedPairs(Path(self._root))
        for start, part in zip(self._starts, self._parts, strict=True):
            own = splits[start : start + len(part)]
            if isinstance(part, Block):
                changed.extend(replace(part, splits=own))
            else:
                for pair, split in zip(part, own, strict=True):
                    changed.append(pair._replace(split=split))
        return changed

    def names(self) -> Iterator[str]:
        """The name of each pair's image, without making pairs."""
        for part in self._parts:
            yield from part.names if isinstance(part, Block) else (pair.name for pair in part)

    def splits(self) -> Iterator[str | None]:
        """The split of each pair, without making pairs."""
        for part in self._parts:
            if isinstance(part, Block):
                yield from part.splits or repeat(None, len(part))
            else:
                yield from (pair.split for pair in part)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Pair]:
        for part in self._parts:
            yield from part.pairs(self._root) if isinstance(part, Block) else part

    @overload
    def __getitem__(self, place: int) -> Pair: ...
    @overload
    def __getitem__(self, place: slice) -> list[Pair]: ...
    def __getitem__(self, place: int | slice) -> Pair | list[Pair]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(self._count))]
        part, inside = self._find(place + self._count if place < 0 else place)
        return part.at(self._root, inside) if isinstance(part, Block) else part[inside]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(pair == another for pair, another in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return id(self)

    def _add(self, part: Block | list[Pair]) -> None:
        self._starts.append(self._count)
        self._parts.append(part)

    def _find(self, place: int) -> tuple[Block | list[Pair], int]:
        if not 0 <= place < self._count:
            raise IndexError(place)
        number = bisect_right(self._starts, place) - 1
        return self._parts[number], place - self._starts[number]
