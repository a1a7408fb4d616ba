"""A confusion matrix as a heat map with a cursor: true classes in rows, predicted ones in columns."""

from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget

from clip_core.text import printable
from clip_tui.outcomes import Outcomes
from clip_tui.theme import GREEN, RED

SHADES = " ░▒▓█"
CELL = 3  # columns
_NAMES = 16  # columns of the names of rows, at most, where not all cells fit beside longer ones


class ConfusionMap(Widget):
    """The arrow keys or the mouse move the cursor; Enter or a click opens the images of a cell."""

    can_focus = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1, 0)", show=False),
        Binding("down", "move(1, 0)", show=False),
        Binding("left", "move(0, -1)", show=False),
        Binding("right", "move(0, 1)", show=False),
        Binding("enter", "open", show=False),
    ]

    class Opened(Message):
        """The images of a cell are asked for."""

        def __init__(self, true: int, predicted: int) -> None:
            super().__init__()
            self.true, self.predicted = true, predicted

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.outcomes = Outcomes()
        self.cursor = (0, 0)

    def show(self, outcomes: Outcomes) -> None:
        """Show another matrix, with the cursor on its largest confusion."""
        self.outcomes = outcomes
        wrong = [(count, cell) for cell, count in outcomes.matrix.items() if cell[0] != cell[1]]
        self.cursor = max(wrong)[1] if wrong else (0, 0)
        self.refresh()

    # ------------------------------------------------------------ drawing

    def _frame(self) -> tuple[int, int, int, int, int]:
        """Width of the names, first row and column, and how many of each are shown; the cursor is among them."""
        size = len(self.outcomes.classes)
        room = max(_NAMES, self.content_size.width - 1 - CELL * size)
        names = min(room, max((cell_len(printable(name)) for name in self.outcomes.names), default=0))
        rows = max(1, min(size, self.content_size.height - 2))
        columns = max(1, min(size, (self.content_size.width - names - 1) // CELL))
        first_row = max(0, min(self.cursor[0] - rows // 2, size - rows))
        first_column = max(0, min(self.cursor[1] - columns // 2, size - columns))
        return names, first_row, first_column, rows, columns

    def render(self) -> Text:
        classes, matrix = self.outcomes.names, self.outcomes.matrix
        text = Text(no_wrap=True, overflow="ellipsis")
        if not classes:
            return text
        names, top, left, rows, columns = self._frame()
        totals = [0] * len(classes)
        for (true, _), count in matrix.items():
            totals[true] += count
        for row in range(top, top + rows):
            here = row == self.cursor[0]
            text.append(set_cell_size(_cut(printable(classes[row]), names), names), "bold" if here else "dim")
            text.append(" ")
            for column in range(left, left + columns):
                count = matrix.get((row, column), 0)
                share = count / totals[row] if totals[row] else 0.0
                cell = _cell(count, share)
                style = GREEN if row == column else RED if count else "dim"
                text.append(cell, f"{style} reverse" if (row, column) == self.cursor else style)
            text.append("\n")
        shown = "" if (rows, columns) == (len(classes), len(classes)) else f"  ({rows} x {columns} of {len(classes)})"
        true, predicted = self.cursor
        text.append(f"{matrix.get(self.cursor, 0)} of {totals[true]} ", "bold")
        text.append(printable(classes[true], 24), GREEN).append(" → ").append(
            printable(classes[predicted], 24), GREEN if true == predicted else RED
        )
        text.append(shown, "dim")
        return text

    # ------------------------------------------------------------ moving

    def action_move(self, down: int, right: int) -> None:
        last = len(self.outcomes.classes) - 1
        if last >= 0:
            row, column = self.cursor
            self.cursor = (max(0, min(last, row + down)), max(0, min(last, column + right)))
            self.refresh()

    def action_open(self) -> None:
        if self.outcomes.classes:
            self.post_message(self.Opened(*self.cursor))

    def on_click(self, event: events.Click) -> None:
        if not self.outcomes.classes:
            return
        offset = event.get_content_offset(self)
        names, top, left, rows, columns = self._frame()
        if offset is None or offset.y >= rows or not 0 <= offset.x - names - 1 < columns * CELL:
            return
        self.cursor = (top + offset.y, left + (offset.x - names - 1) // CELL)
        self.refresh()
        self.action_open()


def _cell(count: int, share: float) -> str:
    """`▓12`: shaded by its share of the row, with its count where it fits."""
    if not count:
        return " · "
    shade = SHADES[max(1, min(len(SHADES) - 1, round(share * (len(SHADES) - 1))))]
    return f"{shade}{count:<2}" if count < 100 else shade * CELL


def _cut(name: str, width: int) -> str:
    return name if cell_len(name) <= width else set_cell_size(name, width - 1) + "…"
