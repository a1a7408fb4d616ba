"""What is sent to the terminal: cells that changed, and of their styles only what differs from the cell before.

Textual sends each widget that was refreshed whole. Over SSH that is most of the traffic of a screen on which few cells
change, so the app remembers what the terminal shows and compares.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.app import App
from textual.screen import Screen
from textual.strip import Strip

from clip_tui.images import cell_size
from clip_tui.pixels import PLACEHOLDER, Cell, PixelImages, Placed, is_part, part_of, split

_GAP = 4  # unchanged cells that are sent again rather than skipped: a cursor movement is as long
_RESET = "\x1b[0m"


class Codes(NamedTuple):
    """The SGR codes of a style; `special` ones (a link) are written around their text by Rich."""

    attributes: str
    foreground: str
    background: str
    special: bool


_PLAIN = Codes("", "39", "49", False)
Line = tuple[int, int, Strip]  # row, column of its first cell, cells


class Shown:
    """The cells that the terminal shows; `update` gives the characters that change it."""

    def __init__(self) -> None:
        self._rows: dict[int, list[Cell | None]] = {}  # None: unknown
        self._codes: dict[Style | None, Codes] = {None: _PLAIN}
        self._system = ""
        self.pixels: PixelImages | None = None
        self.last_row = -1  # pixels on the last row of the screen could make the terminal scroll

    def forget(self) -> None:
        """The terminal may show anything, as after a change of its size."""
        self._rows.clear()

    def changes(self, strips: Iterable[Line], console: Console) -> str:
        """The sequence that makes the terminal show these strips, and nothing for cells that it shows already."""
        if self._system != str(console.color_system):
            self._system, self._codes = str(console.color_system), {None: _PLAIN}
        out: list[str] = []
        parts: set[Placed] = set()
        torn: set[int] = set()  # images of which a cell was written over
        current = _PLAIN
        for y, x, strip in strips:
            cells = list(_cells(strip))
            row = self._rows.setdefault(y, [])
            if len(row) < x + len(cells):
                row.extend([None] * (x + len(cells) - len(row)))
            old = row[x : x + len(cells)]
            if old == cells:
                continue
            _overwrite(row, x, cells)
            for start, end in _runs(old, cells):
                out.append(f"\x1b[{y + 1};{x + start + 1}H")
                run = cells[start:end]
                if self.pixels is not None:
                    torn.update(part_of(cell[0]).number for cell in old[start:end] if cell and is_part(cell[0]))
                    run = self._with_pixels(self.pixels, y, x + start, run, parts)
                current = self._write(out, run, current, console)
        if current != _PLAIN:
            out.append(_RESET)
        if self.pixels is not None:
            parts.update(self._parts(torn) if self.pixels.fragile and torn else ())
            out.append(self.pixels.drawn(parts) if parts else "")
        return "".join(out)

    def repaint(self, number: int) -> str:
        """The sequence that draws an image again wherever it is on the screen."""
        placed = self._parts({number})
        return f"\x1b7{self.pixels.drawn(placed)}\x1b8" if self.pixels is not None and placed else ""

    def visible(self) -> set[int]:
        """The numbers of the images on the screen."""
        cells = (cell[0] for row in self._rows.values() for cell in row if cell is not None)
        return {part_of(text).number for text in cells if is_part(text)}

    def _parts(self, numbers: set[int]) -> set[Placed]:
        """The cells of images that are on the screen."""
        placed = (
            Placed(y, x, part_of(cell[0]))
            for y, row in self._rows.items()
            for x, cell in enumerate(row)
            if cell is not None and is_part(cell[0]) and y != self.last_row
        )
        return {each for each in placed if each.part.number in numbers}

    def _with_pixels(self, pixels: PixelImages, y: int, x: int, cells: list[Cell], parts: set[Placed]) -> list[Cell]:
        """What the terminal gets for these cells; those of images are added to `parts`."""
        shown = []
        for column, cell in enumerate(cells, x):
            if is_part(cell[0]):
                part = part_of(cell[0])
                cell = pixels.cell(part)
                if y != self.last_row:
                    parts.add(Placed(y, column, part))
            shown.append(cell)
        return shown

    def _write(self, out: list[str], cells: list[Cell], current: Codes, console: Console) -> Codes:
        before: object = self  # no style
        for text, style in cells:
            if style is not before:
                before, codes = style, self._codes.get(style) or self._codes_of(style, console)
                if codes != current and not codes.special:
                    out.append(_change(current, codes))
                    current = codes
            if codes.special and style is not None:
                out.append(_RESET + style.render(text, color_system=console._color_system))
                current = _PLAIN
            else:
                out.append(text)
        return current

    def _codes_of(self, style: Style | None, console: Console) -> Codes:
        system = console._color_system
        if style is None or system is None:
            return _PLAIN
        colour, ground = style.color, style.bgcolor
        front = ";".join(colour.downgrade(system).get_ansi_codes()) if colour else "39"
        back = ";".join(ground.downgrade(system).get_ansi_codes(foreground=False)) if ground else "49"
        drawn = style.without_color.render("x", color_system=system)
        attributes = drawn.partition("x")[0].removeprefix("\x1b[").removesuffix("m")
        if len(self._codes) > 1 << 15:  # a screen of images has a colour a cell, some ten thousand
            self._codes = {None: _PLAIN}
        self._codes[style] = codes = Codes(attributes, front, back, style.link is not None)
        return codes


def _change(old: Codes, new: Codes) -> str:
    if new == _PLAIN:
        return _RESET
    parts = []
    if old.attributes != new.attributes:
        parts = ["0", new.attributes] if new.attributes else ["0"]
        old = _PLAIN
    if old.foreground != new.foreground:
        parts.append(new.foreground)
    if old.background != new.background:
        parts.append(new.background)
    return f"\x1b[{';'.join(parts)}m"


def _cells(strip: Strip) -> Iterator[Cell]:
    """A cell a column; a segment with characters of another width than 1 is one cell, followed by empty ones."""
    for text, style, control in strip:
        if control:
            continue
        if PLACEHOLDER in text:
            for index, piece in enumerate(split(text)):
                if index % 2:  # the style does not matter: a dialog over it changes nothing
                    yield piece, None
                elif piece:
                    yield from _cells(Strip([Segment(piece.replace(PLACEHOLDER, "?"), style)]))
            continue
        text = text.translate(_REFUSED)
        if text.isascii() or _is_narrow(text):
            for character in text:
                yield character, style
        else:
            width = cell_len(text)
            yield text, style
            for _ in range(width - 1):
                yield "", style


def _is_narrow(text: str) -> bool:
    """Whether every character is certainly one column wide: Latin letters, and the signs that are drawn with."""
    return all(ord(character) >> 4 in _NARROW for character in text)


# The last gate: screens make text from files printable; what they let through does not reach the terminal either.
_REFUSED = dict.fromkeys((*range(32), *range(127, 160)), "?") | dict.fromkeys(
    (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
)

# Blocks of 16 characters of one column each: Latin, dashes and dots, arrows, lines and blocks, shapes, braille.
_NARROW = dict.fromkeys(
    [*range(0x30), 0x201, 0x202, *range(0x219, 0x220), *range(0x250, 0x25F), *range(0x280, 0x290)], True
)


def _overwrite(row: list[Cell | None], x: int, cells: list[Cell]) -> None:
    """Put cells into a row; of a text that they cover in part, nothing is known any more."""
    end = x + len(cells)
    head = x
    while head > 0 and _goes_on(row[head]):
        row[head] = None
        head -= 1
    if head < x:
        row[head] = None
    tail = end
    while tail < len(row) and _goes_on(row[tail]):
        row[tail] = None
        tail += 1
    row[x:end] = cells


def _goes_on(cell: Cell | None) -> bool:
    """Whether a cell belongs to the text that began on its left."""
    return cell is not None and not cell[0]


def _runs(old: list[Cell | None], new: list[Cell]) -> Iterator[tuple[int, int]]:
    """The ranges that differ, joined where little is between them; none begins within a text."""
    start = end = -1
    for x, (before, after) in enumerate(zip(old, new, strict=True)):
        if before is after or before == after or _goes_on(after):  # what goes on is sent with its beginning
            continue
        if start >= 0 and x - end > _GAP:
            yield start, end
            start = x
        elif start < 0:
            start = x
        end = x + 1
    if start >= 0:
        yield start, end


class DiffingApp(App[None]):
    """An app that sends what changed."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = Shown()
        self._shown_size = (self.size, cell_size())

    @property
    def pixel_images(self) -> PixelImages | None:
        """How images are drawn by pixels; None where they are half blocks."""
        return self._shown.pixels

    @pixel_images.setter
    def pixel_images(self, pixels: PixelImages | None) -> None:
        self._shown.pixels = pixels

    def send(self, sequence: str) -> None:
        """Send a sequence to the terminal, between two frames."""
        if self._driver is not None:
            self._driver.write(sequence)
            self._driver.flush()

    def on_mount(self) -> None:
        self.app_resume_signal.subscribe(self, lambda _: self._shown.forget(), immediate=True)

    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        if isinstance(renderable, ChopsUpdate | LayoutUpdate):
            self._shown.last_row = self.size.height - 1
            if self._shown_size != (size := (self.size, cell_size())):
                self._shown_size = size
                self._shown.forget()
            super()._display(screen, cast("RenderableType", _Changes(renderable, self._shown)))
            return
        if renderable is not None:
            self._shown.forget()
        super()._display(screen, renderable)


class _Changes(CompositorUpdate):
    """An update of Textual's, of which what the terminal shows already is left out."""

    def __init__(self, update: ChopsUpdate | LayoutUpdate, shown: Shown) -> None:
        self._update, self._shown = update, shown

    def render_segments(self, console: Console) -> str:
        placed = _of_layout(self._update) if isinstance(self._update, LayoutUpdate) else _of_chops(self._update)
        return self._shown.changes(placed, console)


def _of_layout(update: LayoutUpdate) -> Iterator[Line]:
    for y, strips in enumerate(update.strips, update.region.y):
        x = update.region.x
        for strip in strips:
            yield y, x, strip
            x += strip.cell_length


def _of_chops(update: ChopsUpdate) -> Iterator[Line]:
    """The parts of the lines that are in a span."""
    for y, start, stop in update.spans:
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if strip is None or x >= stop or end <= start:
                continue
            first = max(x, start)
            yield y, first, strip.crop(first - x, min(end, stop) - x)
