"""Textual's footer and table, with keys as users expect them."""

from typing import ClassVar, TypeVar

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Label, OptionList
from textual.widgets._footer import FooterKey

Cell = TypeVar("Cell")
_MORE = "…"


class KeyFooter(Footer):
    """Only keys that fit whole; an ellipsis stands for the others, which the help page lists."""

    _fitted = 0  # the width that it was made for

    def compose(self) -> ComposeResult:
        keys = [key for key in super().compose() if isinstance(key, FooterKey)]
        self._fitted = self.app.size.width
        leads = [key for key in keys if key.action == "help"]  # stays: it leads to those that do not fit
        others = [key for key in keys if key not in leads]
        widths = [cell_len(f"{key.key_display} {key.description} ") for key in (*leads, *others)]
        shown = fitting(widths, self._fitted)
        if shown == len(keys):
            yield from keys
        else:
            yield from others[: max(0, shown - len(leads))]
            yield from leads
            yield Label(_MORE)

    def on_resize(self, event: events.Resize) -> None:
        if self._bindings_ready and self._fitted != self.app.size.width:
            self.call_after_refresh(self.recompose)


def fitting(widths: list[int], room: int) -> int:
    """How many of the keys, each with a space behind it, fit; with the ellipsis where that is not all of them."""
    if sum(widths) - 1 <= room:
        return len(widths)
    return next(count for count in range(len(widths) - 1, -1, -1) if sum(widths[:count]) + len(_MORE) <= room)


class Rows(DataTable[Cell]):
    """A table of rows: Home and End go to the first and to the last one, not along the columns. A click selects a row,
    a second one anywhere on it opens it.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("home", "scroll_top", show=False),
        Binding("end", "scroll_bottom", show=False),
    ]

    def on_click(self, event: events.Click) -> None:
        """The cursor goes along its row first: DataTable opens the cell that it is on, here every cell of the row."""
        if event.style.meta.get("row") == self.cursor_row:
            self.move_cursor(column=event.style.meta["column"])


class Options(OptionList):
    """A list in which a click selects a line as an arrow key does, and a second one opens it."""

    def on_click(self, event: events.Click) -> None:
        option = event.style.meta.get("option")
        if option is not None and option != self.highlighted:
            self.highlighted = option
            event.prevent_default()  # else OptionList opens it at once
