"""A matrix as coloured cells: similarities of images and captions, a confusion matrix. Large ones are pooled."""

import math
from functools import lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

Matrix = npt.NDArray[np.float64]
LEVELS = 32
RAMP = " .:-=+*#%@"  # without colours, by value
SHADES = " ░▒▓█"
_MARK, _ASCII_MARK = "◆", "o"  # of the cell that is right, where cells have room for it
# Dark to light, one hue: readable in grey and for colour-blind eyes.
_STOPS = np.array([[24, 26, 38], [38, 62, 92], [66, 118, 152], [125, 196, 228], [226, 244, 252]], float)


class HeatMap(Widget, can_focus=True):
    """Shows a matrix; arrow keys or a click choose a cell, Enter or a second click opens it.

    It has no border and no padding.

    Cells are as wide as fits, two columns at least. A matrix with more rows or columns than fit is pooled by its
    maximum, two rows of pixels a line, so that no outlier is lost.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1, 0)", show=False),
        Binding("down", "move(1, 0)", show=False),
        Binding("left", "move(0, -1)", show=False),
        Binding("right", "move(0, 1)", show=False),
        Binding("enter", "open", show=False),
    ]

    class Chosen(Message):
        """A cell came under the cursor; `opened` by Enter or a second click."""

        def __init__(self, row: int, column: int, *, opened: bool) -> None:
            super().__init__()
            self.row, self.column, self.opened = row, column, opened

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.matrix: Matrix = np.zeros((0, 0))
        self.cursor = (0, 0)
        self._range: tuple[float, float] | None = None
        self._diagonal = False
        self._strips: list[Strip] | None = None

    def show(self, matrix: Matrix, *, range: tuple[float, float] | None = None, diagonal: bool = False) -> None:
        """Show another matrix.

        Args:
            matrix: shape (rows, columns); NaN is drawn as the lowest value.
            range: the values of the darkest and the lightest colour; None takes those of the matrix.
            diagonal: the cell of the same row and column is the right one, and is marked.
        """
        if (range, diagonal) == (self._range, self._diagonal) and np.array_equal(matrix, self.matrix, equal_nan=True):
            return
        self.matrix, self._range, self._diagonal = matrix, range, diagonal
        rows, columns = matrix.shape
        self.cursor = (min(self.cursor[0], max(0, rows - 1)), min(self.cursor[1], max(0, columns - 1)))
        self._redraw()

    def reset(self) -> None:
        """The cursor on the first cell."""
        self.cursor = (0, 0)
        self._redraw()

    def choose(self, row: int, column: int, *, opened: bool = False) -> None:
        """Put the cursor on a cell, within the matrix."""
        rows, columns = self.matrix.shape
        if not rows or not columns:
            return
        self.cursor = (min(max(0, row), rows - 1), min(max(0, column), columns - 1))
        self._redraw()
        self.post_message(self.Chosen(*self.cursor, opened=opened))

    def action_move(self, down: int, right: int) -> None:
        self.choose(self.cursor[0] + down, self.cursor[1] + right)

    def action_open(self) -> None:
        self.choose(*self.cursor, opened=True)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        rows, columns = self.matrix.shape
        if offset is None or not rows or not columns:
            return
        if offset.y >= len(self.lines):
            return
        row = self.lines[offset.y].start
        if self.pooled:
            column = offset.x * columns // max(1, min(self.content_size.width, columns))
        else:
            column = offset.x // self.cell_width
        if row < rows and column < columns:
            self.choose(row, column, opened=(row, column) == self.cursor)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips = None

    def on_focus(self) -> None:
        self._redraw()

    def on_blur(self) -> None:
        self._redraw()

    def on_resize(self) -> None:
        self._redraw()

    def _redraw(self) -> None:
        self._strips = None
        self.refresh()

    # ------------------------------------------------------------ drawing

    @property
    def pooled(self) -> bool:
        """Whether the matrix has more cells than fit."""
        rows, columns = map(int, self.matrix.shape)
        return rows > self.content_size.height or 2 * columns > self.content_size.width

    @property
    def lines(self) -> list[range]:
        """The rows of the matrix that each line of the screen shows."""
        rows, height = len(self.matrix), self.content_size.height
        if not self.pooled:
            return [range(row, row + 1) for row in range(rows)]
        pixels = min(height * (1 if self._plain else 2), rows)
        if not pixels:  # not laid out yet
            return []
        starts = [pixel * rows // pixels for pixel in range(0, pixels, 1 if self._plain else 2)]
        return [range(start, end) for start, end in zip(starts, [*starts[1:], rows], strict=True)]

    @property
    def cell_width(self) -> int:
        return max(2, min(6, self.content_size.width // max(1, int(self.matrix.shape[1]))))

    def render_line(self, y: int) -> Strip:
        if self._strips is None:
            style, width = self.rich_style, self.content_size.width
            height = self.content_size.height
            drawn = [*self._drawn(), *[Strip([])] * height][:height]
            drawn = [strip.adjust_cell_length(width, style) for strip in drawn]
            self._strips = drawn if not self._plain else [strip.apply_style(style) for strip in drawn]
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width)

    @property
    def _plain(self) -> bool:
        """Without colours, or in ASCII."""
        return "-ascii" in self.app.classes or self.app.no_color

    def _drawn(self) -> list[Strip]:
        if not self.matrix.size:
            return []
        plain = self._plain
        if not self.pooled:
            levels = self._levels(self.matrix)
            return [self._row(levels[row], row, plain=plain) for row in range(len(levels))]
        columns = min(self.content_size.width, self.matrix.shape[1])
        rows = min(self.content_size.height * (1 if plain else 2), len(self.matrix))
        levels = self._levels(pool(self.matrix, rows, columns))
        return _shaded(levels, self._ramp) if plain else _halves(levels)

    @property
    def _ramp(self) -> str:
        return RAMP if "-ascii" in self.app.classes else SHADES

    def _levels(self, matrix: Matrix) -> npt.NDArray[np.int64]:
        """The levels of a part of the matrix, or of all of it."""
        low, high = self._range or (float(np.fmin.reduce(self.matrix, None)), float(np.fmax.reduce(self.matrix, None)))
        if not (math.isfinite(low) and math.isfinite(high)):
            return np.zeros(matrix.shape, np.int64)
        shares = (np.nan_to_num(matrix, nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1.0)
        return (np.clip(shares, 0.0, 1.0) * (LEVELS - 1)).round().astype(np.int64)

    def _row(self, levels: npt.NDArray[np.int64], row: int, *, plain: bool) -> Strip:
        width, segments = self.cell_width, []
        mark = _ASCII_MARK if "-ascii" in self.app.classes else _MARK
        for column, level in enumerate(levels.tolist()):
            right = self._diagonal and row == column
            fill = self._ramp[level * len(self._ramp) // LEVELS] * width if plain else " " * width
            text = mark + fill[1:] if right else fill
            if (row, column) == self.cursor:
                text = f"[{text[1:-1] if width > 2 else ''}]"
            style = Style() if plain else cell_style(level)
            chosen = (row, column) == self.cursor and self.has_focus
            segments.append(Segment(text, style + Style(bold=True, reverse=plain) if chosen else style))
        return Strip(segments, width * len(segments))


@lru_cache(LEVELS)
def colour(level: int) -> Color:
    """The colour of a level, from 0 to LEVELS - 1."""
    place = level / (LEVELS - 1) * (len(_STOPS) - 1)
    red, green, blue = (np.interp(place, range(len(_STOPS)), _STOPS[:, channel]) for channel in range(3))
    return Color.from_rgb(red, green, blue)


@lru_cache(LEVELS)
def cell_style(level: int) -> Style:
    """A cell of a level, with text that is readable on it."""
    return Style(bgcolor=colour(level), color="#12141c" if level > LEVELS // 2 else "#fff3d0")  # no colour of a theme


@lru_cache(LEVELS * LEVELS)
def _half_style(upper: int, lower: int) -> Style:
    return Style(color=colour(upper), bgcolor=colour(lower))


def pool(matrix: Matrix, rows: int, columns: int) -> Matrix:
    """The maximum of each block, so that `rows` x `columns` are left; NaN is ignored.  (R, C) -> (rows, columns)"""
    row_starts = np.arange(rows) * matrix.shape[0] // rows
    column_starts = np.arange(columns) * matrix.shape[1] // columns
    return np.fmax.reduceat(np.fmax.reduceat(matrix, row_starts, axis=0), column_starts, axis=1)


def _halves(pixels: npt.NDArray[np.int64]) -> list[Strip]:
    """Two rows of pixels a line; neighbours of the same colours are one segment."""
    if len(pixels) % 2:
        pixels = np.vstack([pixels, pixels[-1:]])
    pairs = pixels[::2] * LEVELS + pixels[1::2]
    return [
        Strip([Segment("▀" * length, _half_style(*divmod(pair, LEVELS))) for pair, length in _runs(row)], len(row))
        for row in pairs
    ]


def _shaded(pixels: npt.NDArray[np.int64], ramp: str) -> list[Strip]:
    signs = pixels * len(ramp) // LEVELS
    return [Strip([Segment("".join(ramp[sign] for sign in row))], len(row)) for row in signs.tolist()]


def _runs(row: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Values with the lengths of their runs."""
    ends = np.append(np.flatnonzero(np.diff(row)) + 1, len(row))
    lengths = np.diff(ends, prepend=0)
    return list(zip(row[ends - 1].tolist(), lengths.tolist(), strict=True))
