"""Runs beside each other in a table: scores of the best checkpoints, and the settings in which they differ."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.widgets import DataTable

from clip_core.run.records import Label
from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.differences import Row, comparison
from clip_tui.run_list import shortened
from clip_tui.screens.page import Page
from clip_tui.theme import BLUE, YELLOW
from clip_tui.widgets.keys import Rows

NAME_WIDTH, VALUE_WIDTH = 26, 44
_SHORTEST = 22  # of a column of values, where not all fit


class CompareScreen(Page):
    """Escape goes back; enter draws the curves of all of them in Live."""

    PAGE = "compare"
    BINDINGS = bindings("compare")

    def __init__(self, runs: Sequence[Path]) -> None:
        super().__init__()
        self.runs = list(runs)
        self._names = [Label.called(run) for run in runs]
        self._groups: list[tuple[str, list[Row]]] = []

    def body(self) -> ComposeResult:
        table: Rows[Text] = Rows(cursor_type="row", id="comparison")
        table.border_title = "Comparison"
        yield table

    def on_mount(self) -> None:
        super().on_mount()
        table = self.query_one("#comparison", DataTable)
        table.add_column("", key="name")
        for number, name in enumerate(self._names):  # as text, which is never markup
            table.add_column(Text(shortened(printable(name), _SHORTEST)), key=str(number))
        table.fixed_columns = 1
        table.focus()
        self._fill()

    @work(name="comparison", group="comparison", exclusive=True)
    async def _fill(self) -> None:
        self._groups = await asyncio.to_thread(comparison, self.runs)
        if self.closing:
            return
        table = self.query_one("#comparison", DataTable)
        names = max((cell_len(name) for _, rows in self._groups for name, *_ in rows), default=0)
        room = self.size.width - min(NAME_WIDTH, names) - 8  # of the frame, the scrollbar and the padding of a cell
        width = max(_SHORTEST, min(VALUE_WIDTH, room // len(self.runs) - 2))
        for title, rows in self._groups:
            table.add_row(Text(title, f"bold {BLUE}"), *("" for _ in self.runs))
            for name, *values in rows:
                style = YELLOW if title.startswith("Different") else ""
                cells = (Text(shortened(printable(value), width), style) for value in values)
                table.add_row(Text("  " + printable(name, NAME_WIDTH), "dim"), *cells)

    def copied(self) -> str | None:
        """The table, with tabs between its columns."""
        rows = [("", *self._names), *(row for _, rows in self._groups for row in rows)]
        return "\n".join("\t".join(printable(cell) for cell in row) for row in rows)

    def action_curves(self) -> None:
        self.clip.overlay(self.runs)

    def on_data_table_row_selected(self) -> None:
        self.action_curves()

    def action_back(self) -> None:
        self.app.pop_screen()

    def key_escape(self) -> None:
        """The binding of Escape does it."""
