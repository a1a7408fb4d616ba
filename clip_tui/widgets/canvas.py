"""A grid of dots that becomes braille, or one sign a cell in ASCII. Columns keep the least and the largest value."""

from collections.abc import Sequence
from dataclasses import dataclass

from clip_core.run.curve import Bucket

# Bit of the braille pattern for dot (x, y) of a cell of 2 x 4.
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_ASCII_SIGNS = "*o+x#"


@dataclass(frozen=True)
class Frame:
    """The part of the plane that is shown: steps across, values up."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float, dots: int) -> int:
        span = (self.last - self.first) or 1.0
        return min(dots - 1, max(0, round((step - self.first) / span * (dots - 1))))

    def y(self, value: float, dots: int) -> int:
        span = (self.high - self.low) or 1.0
        return min(dots - 1, max(0, round((self.high - value) / span * (dots - 1))))


class Canvas:
    """`width` x `height` cells; a cell shows the colour of the series drawn last in it."""

    def __init__(self, width: int, height: int, *, ascii_only: bool = False) -> None:
        self.width, self.height, self.ascii_only = width, height, ascii_only
        self._dots_x, self._dots_y = (1, 1) if ascii_only else (2, 4)
        self._cells = [[0] * width for _ in range(height)]
        self._series = [[-1] * width for _ in range(height)]

    def draw(self, series: int, buckets: Sequence[Bucket], frame: Frame) -> None:
        """Draw a curve: in each column of dots a line from its least to its largest value, joined to the next."""
        columns = self._columns(buckets, frame)
        previous: tuple[int, int, int] | None = None
        for x, (top, bottom) in sorted(columns.items()):
            self._line(series, x, top, bottom)
            if previous is not None:
                self._join(series, previous, (x, top, bottom))
            previous = (x, top, bottom)

    def _columns(self, buckets: Sequence[Bucket], frame: Frame) -> dict[int, tuple[int, int]]:
        """For each column of dots, the uppermost and the lowest dot of the values in it."""
        columns: dict[int, tuple[int, int]] = {}
        wide, high = self.width * self._dots_x, self.height * self._dots_y
        for bucket in buckets:
            top, bottom = frame.y(bucket.high, high), frame.y(bucket.low, high)
            x = frame.x((bucket.first + bucket.last) / 2, wide)
            known = columns.get(x, (top, bottom))
            columns[x] = (min(known[0], top), max(known[1], bottom))
        return columns

    def _join(self, series: int, a: tuple[int, int, int], b: tuple[int, int, int]) -> None:
        """Straight from the middle of one column to the middle of a later one."""
        (x0, top0, bottom0), (x1, top1, bottom1) = a, b
        y0, y1 = (top0 + bottom0) / 2, (top1 + bottom1) / 2
        last = round(y0)
        for x in range(x0 + 1, x1 + 1):
            y = round(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
            self._line(series, x, min(last, y), max(last, y)) if abs(y - last) > 1 else self._dot(series, x, y)
            last = y

    def _line(self, series: int, x: int, top: int, bottom: int) -> None:
        for y in range(top, bottom + 1):
            self._dot(series, x, y)

    def _dot(self, series: int, x: int, y: int) -> None:
        row, column = y // self._dots_y, x // self._dots_x
        bit = 1 if self.ascii_only else _BITS[x % 2][y % 4]
        self._cells[row][column] |= bit
        self._series[row][column] = series

    def row(self, y: int) -> list[tuple[str, int]]:
        """The cells of a row as (character, series); series -1 is an empty cell."""
        return [
            (self._sign(cell, series), series) for cell, series in zip(self._cells[y], self._series[y], strict=True)
        ]

    def _sign(self, cell: int, series: int) -> str:
        if not cell:
            return " "
        return _ASCII_SIGNS[series % len(_ASCII_SIGNS)] if self.ascii_only else chr(0x2800 + cell)
