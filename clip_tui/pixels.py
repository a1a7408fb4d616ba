"""Cells that stand for a part of an image which the terminal draws by pixels.

Widgets and Textual's compositor have them like any other cell, so they are cropped, scrolled and covered by dialogs as
text is. Which part of which image a cell is stands in its characters, as Textual changes styles: a dialog tints the
screen below it. `output.Shown` knows which of these cells the terminal shows, a `PixelImages` how it shows more.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from clip_tui.images import stamp

PLACEHOLDER = "\U0010eeee"  # of Kitty's graphics protocol

# The combining characters of class 230 without a decomposition, in Unicode 6.0: the n-th one stands for n.
_RANGES = """
305 30D-30E 310 312 33D-33F 346 34A-34C 350-352 357 35B 363-36F 483-487 592-595 597-599 59C-5A1 5A8-5A9 5AB-5AC 5AF 5C4
610-617 657-65B 65D-65E 6D6-6DC 6DF-6E2 6E4 6E7-6E8 6EB-6EC 730 732-733 735-736 73A 73D 73F-741 743 745 747 749-74A
7EB-7F1 7F3 816-819 81B-823 825-827 829-82D 951 953-954 F82-F83 F86-F87 135D-135F 17DD 193A 1A17 1A75-1A7C 1B6B
1B6D-1B73 1CD0-1CD2 1CDA-1CDB 1CE0 1DC0-1DC1 1DC3-1DC9 1DCB-1DCC 1DD1-1DE6 1DFE 20D0-20D1 20D4-20D7 20DB-20DC 20E1 20E7
20E9 20F0 2CEF-2CF1 2DE0-2DFF A66F A67C-A67D A6F0-A6F1 A8E0-A8F1 AAB0 AAB2-AAB3 AAB7-AAB8 AABE-AABF AAC1 FE20-FE26
10A0F 10A38 1D185-1D189 1D1AA-1D1AD 1D242-1D244
"""


def _characters() -> Iterator[str]:
    for part in _RANGES.split():
        first, _, last = part.partition("-")
        yield from map(chr, range(int(first, 16), int(last or first, 16) + 1))


DIACRITICS = tuple(_characters())
_VALUES = {character: value for value, character in enumerate(DIACRITICS)}
_MOST = len(DIACRITICS)
_PART = re.compile(f"({PLACEHOLDER}[{''.join(DIACRITICS)}]{{4}})")

K = TypeVar("K")
V = TypeVar("V")
Cell = tuple[str, Style | None]
Key = tuple[str, int, int, int]  # of an image: path, its time, columns, rows


class Part(NamedTuple):
    """One cell of an image: the number of the image, and the cell's row and column in it."""

    number: int
    row: int
    column: int


class Placed(NamedTuple):
    """A part of an image at a row and a column of the screen."""

    y: int
    x: int
    part: Part


class PixelImages(Protocol):
    """A way of drawing images by pixels."""

    fragile: bool  # a text over one cell of an image makes the terminal forget its other cells too

    async def strips(self, path: Path, columns: int, rows: int) -> list[Strip]:
        """The cells of an image as large as fits. Raises ImageError if it cannot be decoded."""
        ...

    def cell(self, part: Part) -> Cell:
        """What the terminal gets for a cell of an image that it is to show."""
        ...

    def drawn(self, placed: Collection[Placed]) -> str:
        """The sequence that draws these cells, after `cell` was sent for each."""
        ...

    def close(self) -> None: ...


def split(text: str) -> list[str]:
    """A text in parts; those at odd indices are one cell of an image each."""
    return _PART.split(text)


def part_of(cell: str) -> Part:
    """What the characters of one cell of an image say."""
    row, column, high, low = (_VALUES[character] for character in cell[1:])
    return Part(high * _MOST + low, row, column)


def is_part(cell: str) -> bool:
    """Whether the characters of one cell are those of an image."""
    return len(cell) > 1 and cell[0] == PLACEHOLDER


class Known(NamedTuple):
    """An image that was asked for, and the columns and rows that it takes."""

    path: Path
    across: int
    down: int


class Numbers:
    """The number of every image that has cells, so that it can be read again when the terminal lost it."""

    def __init__(self) -> None:
        self._known: dict[int, Known] = {}
        self._numbers: dict[Key, int] = {}
        self._next = 0

    def find(self, path: Path, columns: int, rows: int) -> tuple[Key, int | None]:
        """The key of an image as large as fits, in as many cells as can be named, and its number if it has one."""
        key = (str(path), stamp(path), min(columns, _MOST), min(rows, _MOST))
        return key, self._numbers.get(key)

    def add(self, key: Key, known: Known) -> int:
        """A new number; after 88,209 images the first one is given again."""
        number, self._next = self._next, (self._next + 1) % (_MOST * _MOST)
        self._known[number], self._numbers[key] = known, number
        return number

    def __getitem__(self, number: int) -> Known:
        return self._known[number]

    def __contains__(self, number: int) -> bool:
        return number in self._known

    def strips(self, number: int) -> list[Strip]:
        """The cells of an image, a segment each: Rich cuts a segment of several such cells in the wrong place."""
        known = self._known[number]
        tail = DIACRITICS[number // _MOST] + DIACRITICS[number % _MOST]
        return [
            Strip([Segment(PLACEHOLDER + row + column + tail) for column in DIACRITICS[: known.across]], known.across)
            for row in DIACRITICS[: known.down]
        ]


class Kept(Generic[K, V]):
    """Values of at most so many bytes together; what was asked for last stays longest."""

    def __init__(self, most: int, size: Callable[[V], int]) -> None:
        self._most, self._size = most, size
        self._values: OrderedDict[K, V] = OrderedDict()
        self.bytes = 0

    def get(self, key: K) -> V | None:
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def __setitem__(self, key: K, value: V) -> None:
        if key in self._values:
            self.bytes -= self._size(self._values.pop(key))
        self._values[key] = value
        self.bytes += self._size(value)
        while self.bytes > self._most:
            self.bytes -= self._size(self._values.popitem(last=False)[1])

    def clear(self) -> None:
        self._values.clear()
        self.bytes = 0
