"""Images by Sixel: the pixels are written over cells, and are gone when a text is written there.

Every cell that the terminal is to show anew is drawn, joined with its neighbours to rectangles, from the image's colour
numbers, which are kept. https://vt100.net/docs/vt3xx-gp/chapter14.html
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from textual.strip import Strip

from clip_core.errors import ImageError
from clip_tui.images import cell_size, fitted, scaled
from clip_tui.pixels import Cell, Kept, Known, Numbers, Part, Placed

KEPT_BYTES = 64 << 20  # of colour numbers, and as much of sequences
TILE_WIDTH, TILE_PIXELS = 1000, 250_000  # xterm refuses more than 1000 pixels, tmux more than 1 MiB in a sequence
AT_ONCE = 100_000  # pixels that may be encoded while the event loop waits, about 10 ms
_COLOURS = 256

Rectangle = tuple[int, int, int, int]  # first row and column, and those after the last one, in cells of the image


class Prepared(NamedTuple):
    """An image as numbers of colours, uint8 (H, W), and its colours, uint8 (N, 3); for cells of a size in pixels."""

    indices: NDArray[np.uint8]
    palette: NDArray[np.uint8]
    cell: tuple[int, int]


class Sixel:
    """The images that are at hand for the terminal; `repaint` draws all cells of an image that are on the screen."""

    def __init__(self, repaint: Callable[[int], None], say: Callable[[str], None]) -> None:
        self.fragile = bool(os.environ.get("TMUX"))
        self._repaint, self._say = repaint, say
        self._numbers = Numbers()
        self._prepared = Kept[int, Prepared](KEPT_BYTES, lambda image: image.indices.nbytes)
        self._encoded = Kept[tuple[int, Rectangle], str](KEPT_BYTES, len)
        self._wanted: dict[int, list[Rectangle]] = {}  # what is encoded in a thread now
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._lost: set[int] = set()
        self._cell = cell_size()

    async def strips(self, path: Path, columns: int, rows: int) -> list[Strip]:
        """The cells of an image as large as fits.

        Raises:
            ImageError: if the image cannot be decoded.
        """
        key, number = self._numbers.find(path, columns, rows)
        if number is None:
            self._follow_cell_size()
            cell = self._cell
            image, across, down = await asyncio.to_thread(fitted, path, *key[2:], cell)
            prepared = await asyncio.to_thread(quantised, image, across, down, cell)
            tiles = list(_tiles((0, 0, down, across), cell))
            sequences = [await asyncio.to_thread(encoded, prepared, tile) for tile in tiles]
            _, number = self._numbers.find(path, columns, rows)  # another widget may have asked for it meanwhile
            if number is None:
                number = self._numbers.add(key, Known(path, across, down))
            if cell == self._cell:
                self._prepared[number] = prepared
                for tile, sequence in zip(tiles, sequences, strict=True):
                    self._encoded[number, tile] = sequence
        return self._numbers.strips(number)

    def cell(self, part: Part) -> Cell:
        """A blank: it takes away what was drawn there."""
        return " ", None

    def drawn(self, placed: Collection[Placed]) -> str:
        """The sequences that draw these cells; what takes longer than a moment is drawn later."""
        self._follow_cell_size()
        groups: dict[tuple[int, int, int], set[tuple[int, int]]] = defaultdict(set)
        for y, x, (number, row, column) in placed:
            groups[number, y - row, x - column].add((row, column))
        out: list[str] = []
        for (number, top, left), cells in groups.items():
            for rectangle in rectangles(cells) if number in self._numbers else ():
                for tile in _tiles(rectangle, self._cell):
                    sequence = self._sequence(number, tile)
                    if sequence is not None:
                        out.append(f"\x1b[{top + tile[0] + 1};{left + tile[1] + 1}H{sequence}")
        return "".join(out)

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def _follow_cell_size(self) -> None:
        """After a change of the font nothing fits any more."""
        if self._cell != (cell := cell_size()):
            self._cell = cell
            self._prepared.clear()
            self._encoded.clear()

    def _sequence(self, number: int, tile: Rectangle) -> str | None:
        """A part of an image; None where it is read or encoded first, after which the image is repainted."""
        sequence = self._encoded.get((number, tile))
        prepared = self._prepared.get(number)
        if sequence is not None or number in self._lost:
            return sequence
        top, left, bottom, right = tile
        if prepared is not None and (bottom - top) * (right - left) * self._cell[0] * self._cell[1] <= AT_ONCE:
            self._encoded[number, tile] = sequence = encoded(prepared, tile)
            return sequence
        self._wanted.setdefault(number, []).append(tile)
        if number not in self._tasks:
            self._tasks[number] = asyncio.create_task(self._load(number))
        return None

    async def _load(self, number: int) -> None:
        known, cell = self._numbers[number], self._cell
        try:
            prepared = self._prepared.get(number)
            if prepared is None:
                image = await asyncio.to_thread(scaled, known.path, known.across, known.down, cell)
                prepared = await asyncio.to_thread(quantised, image, known.across, known.down, cell)
            for tile in self._wanted[number]:
                sequence = await asyncio.to_thread(encoded, prepared, tile)
                if cell == self._cell:
                    self._prepared[number], self._encoded[number, tile] = prepared, sequence
        except ImageError as error:
            self._lost.add(number)
            self._say(str(error))
        finally:
            del self._tasks[number], self._wanted[number]
        self._repaint(number)


def quantised(image: Image.Image, across: int, down: int, cell: tuple[int, int]) -> Prepared:
    """An image in at most 256 colours, as large as its cells."""
    reduced = image.quantize(
        _COLOURS, Image.Quantize.FASTOCTREE
    )  # 0.5 ms where MEDIANCUT takes 60 and errs 3.0, not 3.8
    palette = np.array(reduced.getpalette(), np.uint8).reshape(-1, 3)
    size = across * cell[0], down * cell[1]
    if reduced.size != size:
        reduced = reduced.resize(size, Image.Resampling.NEAREST)
    return Prepared(np.asarray(reduced, np.uint8), palette, cell)


def encoded(image: Prepared, tile: Rectangle) -> str:
    """A part of an image as a Sixel sequence; every one of its pixels is set."""
    (top, left, bottom, right), (width, height) = tile, image.cell
    pixels = image.indices[top * height : bottom * height, left * width : right * width]
    used = np.unique(pixels)
    percent = (image.palette[used].astype(int) * 100 + 127) // 255
    colours = "".join(f"#{colour};2;{r};{g};{b}" for colour, (r, g, b) in zip(used, percent, strict=True))
    numbers = np.zeros(_COLOURS, np.intp)
    numbers[used] = np.arange(len(used))
    body = _body(numbers[pixels], used)
    return f'\x1bP0;1q"1;1;{pixels.shape[1]};{pixels.shape[0]}{colours}{body}\x1b\\'


def _body(pixels: NDArray[np.intp], names: NDArray[np.uint8]) -> str:
    """The pixels in bands of six rows: for each colour of a band, its columns of six bits in runs.

    Every run, and every head and end of a colour, is a token of at most five bytes; zero bytes are left out.
    """
    height, width = pixels.shape
    bands = -(-height // 6)
    bits = np.zeros((bands, len(names), width), np.uint8)
    columns = np.arange(width)
    for y in range(6):
        rows = pixels[y::6]
        bits[np.arange(len(rows))[:, None], rows, columns] |= 1 << y
    band, colour = np.nonzero(bits.any(axis=2))
    lines = bits[band, colour]  # (L, W)
    begins = np.ones(lines.shape, bool)
    begins[:, 1:] = lines[:, 1:] != lines[:, :-1]
    line, column = np.nonzero(begins)
    lengths = np.diff(np.append(line * width + column, lines.size))
    values = lines[line, column]
    last = np.append(line[1:] != line[:-1], True)
    runs = _RUNS[lengths]
    runs[:, 4] = values + 63
    runs[lengths == 2, 3] = runs[lengths == 2, 4]
    runs[lengths == 3, 2:4] = runs[lengths == 3, 4:5]
    runs[last & (values == 0)] = 0  # blank to the end of a line
    tokens = np.zeros((len(runs) + 2 * len(lines), 5), np.uint8)
    tokens[np.arange(len(runs)) + 2 * line + 1] = runs
    ends = np.flatnonzero(last) + 2 * np.arange(len(lines)) + 2
    tokens[np.append(0, ends[:-1] + 1)] = _HEADS[names[colour]]
    tokens[ends, 4] = np.where(np.append(band[1:] != band[:-1], True), ord("-"), ord("$"))
    return str(tokens[tokens != 0].tobytes(), "ascii")


def _table(texts: Iterable[str]) -> NDArray[np.uint8]:
    """Texts of at most five characters, in bytes, uint8 (N, 5)."""
    return np.array([list(text.encode("ascii").ljust(5, b"\0")) for text in texts], np.uint8)


_RUNS = _table("" if length < 4 else f"!{length}" for length in range(TILE_WIDTH))
_HEADS = _table(f"#{colour}" for colour in range(_COLOURS))


def rectangles(cells: Collection[tuple[int, int]]) -> Iterator[Rectangle]:
    """Rectangles that cover cells (row, column) once each: runs of a row, joined with equal ones of the rows below."""
    going: dict[tuple[int, int], int] = {}  # the rectangles that reach the row before, and their first rows
    before = -1
    rows: dict[int, list[int]] = defaultdict(list)
    for row, column in sorted(cells):
        rows[row].append(column)
    for row, columns in [*rows.items(), (1 << 30, [])]:
        runs = _runs_of(columns)
        for run in [run for run in going if run not in runs or row != before + 1]:
            yield going.pop(run), run[0], before + 1, run[1]
        for run in runs:
            going.setdefault(run, row)
        before = row


def _runs_of(columns: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and runs[-1][1] == column:
            runs[-1] = runs[-1][0], column + 1
        else:
            runs.append((column, column + 1))
    return runs


def _tiles(rectangle: Rectangle, cell: tuple[int, int]) -> Iterator[Rectangle]:
    """A rectangle in tiles that terminals take, on a grid of the image, so that those it covers whole are the same."""
    top, left, bottom, right = rectangle
    wide = max(1, (TILE_WIDTH - 1) // cell[0])
    high = max(1, TILE_PIXELS // (wide * cell[0] * cell[1]))
    for row in range(top // high * high, bottom, high):
        for column in range(left // wide * wide, right, wide):
            yield max(row, top), max(column, left), min(row + high, bottom), min(column + wide, right)
