"""A grid of dots that becomes braille, or one sign a cell. Columns keep the smallest and the largest value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.segment import Segment
from rich.style import Style

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Value of dot (y, x) in the braille pattern of a cell of 4 x 2.
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], np.uint8)
ASCII_SIGNS = "*o+x#"
PLAIN_SIGNS = "•o+×■"  # without colours
_EMPTY = -1


@dataclass(frozen=True)
class Frame:
    """The part of the plane that is shown: x across, values up."""

    first: float
    last: float
    low: float
    high: float


@dataclass(frozen=True)
class Pen:
    """What a curve is drawn with: a style, a sign where there is one a cell, and whether other curves cover it."""

    style: Style
    sign: str = "*"
    faint: bool = False


class Canvas:
    """`width` x `height` cells; a cell has the style of the pen that drew last in it.

    Args:
        pens: `draw` names one by its place.
        braille: 2 x 4 dots a cell; else one sign a cell.
    """

    def __init__(self, width: int, height: int, pens: Sequence[Pen], *, braille: bool = True) -> None:
        self.width, self.height, self.braille = width, height, braille
        self._pens_used = pens
        self._faint = np.array([pen.faint for pen in pens] + [False])  # the last one: an empty cell
        self._dots_x, self._dots_y = (2 * width, 4 * height) if braille else (width, height)
        self._cells = np.zeros((height, width), np.uint8)  # braille patterns, or 1
        self._pens = np.full((height, width), _EMPTY, np.int16)

    def draw(self, pen: int, x: Floats, low: Floats, high: Floats, frame: Frame) -> None:
        """Draw a curve: in each column of dots a line from its smallest to its largest value, joined to the next.

        Args:
            x: ascending, shape (N,); of what lies outside of the frame, only the next point on each side is used.
            low, high: shape (N,).
        """
        begin = max(0, int(np.searchsorted(x, frame.first)) - 1)
        end = int(np.searchsorted(x, frame.last, side="right")) + 1
        if not len(x[begin:end]):
            return
        columns, top, bottom = self._columns(x[begin:end], low[begin:end], high[begin:end], frame)
        columns, top, bottom = _joined(columns, top, bottom, self._dots_x)
        dots = np.zeros((self._dots_y, self._dots_x), bool)
        rows = np.arange(self._dots_y)[:, None]
        dots[:, columns] = (rows >= top) & (rows <= bottom)
        self._add(pen, dots)

    def _columns(self, x: Floats, low: Floats, high: Floats, frame: Frame) -> tuple[Ints, Ints, Ints]:
        """For each column of dots that has points, the uppermost and the lowest dot of its values."""
        wide, tall = (frame.last - frame.first) or 1.0, (frame.high - frame.low) or 1.0
        place = np.clip(np.rint((x - frame.first) / wide * (self._dots_x - 1)), -1e6, 1e6).astype(np.int64)
        last = self._dots_y - 1
        top = np.clip(np.rint((frame.high - high) / tall * last), 0, last).astype(np.int64)
        bottom = np.clip(np.rint((frame.high - low) / tall * last), 0, last).astype(np.int64)
        starts = np.concatenate(([0], np.flatnonzero(np.diff(place)) + 1))
        return place[starts], np.minimum.reduceat(top, starts), np.maximum.reduceat(bottom, starts)

    def _add(self, pen: int, dots: npt.NDArray[np.bool_]) -> None:
        if self.braille:
            patterns = np.zeros((self.height, self.width), np.uint8)
            for y in range(4):
                for x in range(2):
                    patterns |= dots[y::4, x::2] * _BITS[y, x]
        else:
            patterns = dots.astype(np.uint8)
        drawn = patterns > 0
        self._cells[drawn & self._faint[self._pens]] = 0
        self._cells |= patterns
        self._pens[drawn] = pen

    def rows(self, marks: Mapping[tuple[int, int], tuple[str, Style]]) -> list[list[Segment]]:
        """The cells as segments, a list a row; `marks` are signs for cells (x, y), where no curve is."""
        codes, pens = self._codes(), self._pens.copy()
        styles: list[Style | None] = [pen.style for pen in self._pens_used]
        for (x, y), (sign, style) in marks.items():
            if 0 <= x < self.width and 0 <= y < self.height and pens[y, x] == _EMPTY:
                codes[y, x], pens[y, x] = ord(sign), len(styles)
                styles.append(style)
        styles.append(None)  # of empty cells, which are -1
        text = codes.tobytes().decode("utf-32-le")
        return [_segments(text[y * self.width : (y + 1) * self.width], pens[y], styles) for y in range(self.height)]

    def _codes(self) -> npt.NDArray[np.uint32]:
        if self.braille:
            drawn = self._cells.astype(np.uint32) + 0x2800
        else:
            drawn = np.array([ord(pen.sign) for pen in self._pens_used] + [32], np.uint32)[self._pens]
        return np.where(self._cells > 0, drawn, np.uint32(32)).astype("<u4")


def _joined(columns: Ints, top: Ints, bottom: Ints, width: int) -> tuple[Ints, Ints, Ints]:
    """Every column between the first and the last one, with straight lines from middle to middle."""
    first, last = max(0, int(columns[0])), min(width - 1, int(columns[-1]))
    if first > last:
        return columns[:0], top[:0], bottom[:0]
    every = np.arange(first, last + 1)
    before = np.arange(first - 1, last)
    middle = (top + bottom) / 2
    y = np.rint(np.interp(every, columns, middle)).astype(np.int64)
    y_before = np.rint(np.interp(before, columns, middle)).astype(np.int64)
    nearer = y_before + np.sign(y - y_before)  # where the line enters this column
    line_top, line_bottom = np.minimum(y, nearer), np.maximum(y, nearer)
    inside = (columns >= first) & (columns <= last)
    at = columns[inside] - first
    line_top[at] = np.minimum(line_top[at], top[inside])
    line_bottom[at] = np.maximum(line_bottom[at], bottom[inside])
    return every, line_top, line_bottom


def _segments(text: str, pens: npt.NDArray[np.int16], styles: Sequence[Style | None]) -> list[Segment]:
    """The cells of a row, those of one pen together."""
    segments, start = [], 0
    for end in [*(np.flatnonzero(np.diff(pens)) + 1).tolist(), len(text)]:
        segments.append(Segment(text[start:end], styles[int(pens[start])]))
        start = end
    return segments
