"""A list of any length: only the lines on the screen are asked for."""

from collections.abc import Callable
from typing import ClassVar

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from clip_tui.theme import BLUE


class GroupList(ScrollView, can_focus=True):
    """One line an entry; the arrow keys, the pages, Home, End and a click choose one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "choose(0)", show=False),
        Binding("end", "choose(-1)", show=False),
    ]

    class Chosen(Message):
        """Another entry came under the cursor."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.cursor = 0
        self.count = 0
        self._line: Callable[[int], str] = str

    def show(self, count: int, line: Callable[[int], str]) -> None:
        """Show other entries.

        Args:
            line: the text of an entry, printable; called for those on the screen.
        """
        self.count, self._line, self.cursor = count, line, 0
        self.virtual_size = Size(1, count)
        self.scroll_to(y=0, animate=False)
        self.refresh()

    def choose(self, place: int) -> None:
        """Put the cursor on an entry, within the list."""
        place = min(max(place, 0), max(self.count - 1, 0))
        if place != self.cursor:
            self.cursor = place
            self.scroll_to_region(Region(0, place, 1, 1), animate=False)
            self.refresh()
            self.post_message(self.Chosen())

    def render_line(self, y: int) -> Strip:
        place, width = y + self.scroll_offset.y, self.size.width
        if place >= self.count:
            return Strip.blank(width, self.rich_style)
        style = self.rich_style
        if place == self.cursor:
            style += Style(bold=True, reverse=self.has_focus or self.app.no_color, color=BLUE)
        text = self._line(place)
        cut = set_cell_size(text, width)
        if cut.rstrip() != text.rstrip() and width > 1:
            cut = set_cell_size(text, width - 1) + "…"
        return Strip([Segment(cut, style)], width)

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        self.choose(event.y + self.scroll_offset.y)

    def action_move(self, by: int) -> None:
        self.choose(self.cursor + by)

    def action_page(self, by: int) -> None:
        self.choose(self.cursor + by * max(1, self.size.height - 1))

    def action_choose(self, place: int) -> None:
        self.choose(place if place >= 0 else self.count - 1)
