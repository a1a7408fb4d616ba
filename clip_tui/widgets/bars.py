"""Names with bars: probabilities of classes, similarities of captions."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text
from textual.geometry import Size
from textual.widget import Widget

from clip_core.text import printable
from clip_tui.theme import BLUE, DIM_BLUE, GREEN, TRACK

_SHORTEST = 4  # columns of a bar
FULL, HALF, EMPTY = "━", "╸", "─"


@dataclass(frozen=True)
class Bar:
    """One line: a name, the filled share of the bar in [0, 1], the value as text, and whether it is a true match.

    `short` is the name where there is no room for all of the names.
    """

    name: str
    share: float
    value: str
    right: bool = False
    short: str = ""


class Bars(Widget):
    """One line per bar, best first."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._bars: Sequence[Bar] = ()
        self._empty = ""
        self._first = 1

    @property
    def bars(self) -> Sequence[Bar]:
        return self._bars

    def show(self, bars: Sequence[Bar], empty: str = "", *, first: int = 1) -> None:
        """Show these bars, or the text `empty` if there are none; `first` is the rank of the first one."""
        self._bars, self._empty, self._first = tuple(bars), empty, first
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return max(1, len(self._bars))

    def render(self) -> Text:
        width = self.content_size.width
        if not self._bars:
            text = Text(printable(self._empty), "dim")
            text.truncate(width, overflow="ellipsis")
            return text
        values = max(len(bar.value) for bar in self._bars)
        names = [printable(bar.name) for bar in self._bars]
        space, length = _columns(names, values, width)
        if max(map(cell_len, names)) > space:
            names = [printable(bar.short or bar.name) for bar in self._bars]
            space, length = _columns(names, values, width)
        text = Text(no_wrap=True)
        for rank, (bar, name) in enumerate(zip(self._bars, names, strict=True), start=self._first):
            style = "bold" if rank == 1 else ""
            text.append(f"{rank:>2} ", "dim")
            text.append(_fitted(name, space), style + (f" {GREEN}" if bar.right else ""))
            text.append(" " if length else "")
            _append_bar(text, bar.share, length, first=rank == 1)
            text.append(f" {bar.value:>{values}}", style)
            text.append("✓\n" if bar.right else "\n", GREEN)
        text.right_crop(1)
        return text


def _columns(names: Sequence[str], values: int, width: int) -> tuple[int, int]:
    """Columns of the names and of the bars; `values` is that of the values."""
    longest = max(map(cell_len, names))
    space = max(8, min(longest, (width - values) * 3 // 5 if width >= 40 else width - values - 10))
    length = max(0, width - space - values - 6)
    if length < _SHORTEST:  # it would say nothing, and a name needs the room
        return max(8, min(longest, width - values - 5)), 0
    return space, length


def _fitted(name: str, width: int) -> str:
    return set_cell_size(name, width) if cell_len(name) <= width else set_cell_size(name, width - 1) + "…"


def _append_bar(text: Text, share: float, length: int, *, first: bool) -> None:
    halves = round(2 * length * min(1.0, max(0.0, share)))
    filled = FULL * (halves // 2) + HALF * (halves % 2)
    text.append(filled, BLUE if first else DIM_BLUE)
    text.append(EMPTY * (length - len(filled)), TRACK)
