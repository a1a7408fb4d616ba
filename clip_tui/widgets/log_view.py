"""A long log: lines are wrapped at words, and only those in sight are drawn, so that thousands of them cost nothing."""

import re
from bisect import bisect_left
from collections.abc import Sequence

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from clip_tui.theme import YELLOW

_WORDS = re.compile(r"\s*\S*\s*")


class LogView(ScrollView, can_focus=True):
    """The last `kept` lines; follows their end while it is in sight. Lines hold printable characters alone."""

    def __init__(self, kept: int, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.lines: list[str] = []
        self.follows = True
        self._kept = kept
        self._width = self._height = 0  # for which they were wrapped
        self._goes_to_end = False
        self._rows: list[str] = []
        self._starts: list[int] = []  # of each line, its first row
        self._words, self._current = "", -1

    def write(self, lines: Sequence[str]) -> None:
        """Append lines."""
        follow = self.follows and self._at_end
        self.lines.extend(lines)
        if len(self.lines) > self._kept:
            del self.lines[: -self._kept]
            self._wrap()
        else:
            self._add_rows(lines)
        if follow:
            self.to_end()

    @property
    def _at_end(self) -> bool:
        """Whether the last line is in sight, or will be."""
        bottom = len(self._rows) - self._height
        return self._goes_to_end or not self._height or self.scroll_y >= bottom - 1

    def to_end(self) -> None:
        """Scroll to the end, once its place is known."""
        self._goes_to_end = True
        self.call_after_refresh(self._arrive)

    def _arrive(self) -> None:
        self._goes_to_end = False
        self.scroll_to(y=self.max_scroll_y, animate=False, force=True)  # the scroll bar may not be there yet

    def clear(self) -> None:
        self.lines.clear()
        self.mark("", -1)
        self._wrap()

    def mark(self, words: str, current: int) -> None:
        """Mark words wherever they are, and the line `current` most of all."""
        self._words, self._current = words, current
        self.refresh()

    def show_line(self, index: int) -> None:
        """Scroll until a line is in the middle."""
        row = self._starts[index] if index < len(self._starts) else 0
        self.scroll_to(y=max(0, row - self.size.height // 2), animate=False, force=True)

    @property
    def in_sight(self) -> list[str]:
        """The lines that are shown now."""
        top = int(self.scroll_y)
        first = max(0, bisect_left(self._starts, top + 1) - 1)
        return self.lines[first : bisect_left(self._starts, top + self.size.height)]

    # ------------------------------------------------------------ drawing

    def on_resize(self, event: events.Resize) -> None:
        follow, top = self.follows and self._at_end, max(0, bisect_left(self._starts, int(self.scroll_y) + 1) - 1)
        rewrapped = self.scrollable_content_region.width != self._width
        self._height = self.scrollable_content_region.height
        if rewrapped:
            self._wrap()
        if follow:
            self.to_end()
        elif rewrapped and self._current >= 0:
            self.call_after_refresh(self.show_line, self._current)
        elif rewrapped and top < len(self._starts):
            self.scroll_to(y=self._starts[top], animate=False, force=True)

    def _wrap(self) -> None:
        self._width = self.scrollable_content_region.width
        self._rows, self._starts = [], []
        self._add_rows(self.lines)

    def _add_rows(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._starts.append(len(self._rows))
            if self._width <= 0 or cell_len(line) <= self._width:
                self._rows.append(line)
            else:
                self._rows += wrapped(line, self._width)
        self.virtual_size = Size(0, len(self._rows))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        row = int(self.scroll_y) + y
        width, style = self.scrollable_content_region.width, self.rich_style
        if row >= len(self._rows):
            return Strip.blank(width, style)
        index = bisect_left(self._starts, row + 1) - 1
        return (
            Strip(self._marked(self._rows[row], index == self._current))
            .apply_style(style)
            .adjust_cell_length(width, style)
        )

    def _marked(self, text: str, current: bool) -> list[Segment]:
        folded, segments, at = text.casefold(), [], 0
        if not self._words or len(folded) != len(text):
            return [Segment(text)]
        style = Style.parse(f"bold {YELLOW}") + Style(reverse=current)
        while (found := folded.find(self._words, at)) >= 0:
            segments += [Segment(text[at:found]), Segment(text[found : found + len(self._words)], style)]
            at = found + len(self._words)
        return [*segments, Segment(text[at:])]


def wrapped(line: str, width: int) -> list[str]:
    """The rows of a line, each at most `width` cells wide: broken after a space, within a word only if it is wider
    than a row. Together they are the line again, so that what is marked or copied has every character.
    """
    rows, row, room = [], "", width
    for word in _WORDS.findall(line):
        needed = cell_len(word.rstrip())  # spaces at the end of a row need no room
        if needed > room and row:
            rows.append(row)
            row, room = "", width
        if needed > width:
            *full, word = chop_cells(word, width)
            rows += full
        row += word
        room -= cell_len(word)
    return [*rows, row] if row else rows
