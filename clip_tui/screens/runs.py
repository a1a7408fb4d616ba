"""The runs below the directory: what each is doing now, and the numbers of its best checkpoint."""

import asyncio
import time
from pathlib import Path

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.widgets import DataTable, Static

from clip_core.run.records import State
from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.numbers import ago
from clip_tui.screens.page import Page
from clip_tui.theme import BLUE, RED
from clip_tui.watcher import Snapshot, best_text, list_runs
from clip_tui.widgets.run_bar import state_text

POLL_SECONDS = 1.0
COLUMNS = ("state", "run", "step", "best", "seen", "error")
NAME_WIDTH, ERROR_WIDTH = 32, 40  # columns; the whole error is shown below the table


class RunsScreen(Page):
    """Enter attaches to a run; n starts a new one."""

    PAGE = "runs"
    BINDINGS = bindings("runs")

    def body(self) -> ComposeResult:
        table: DataTable[Text] = DataTable(cursor_type="row", id="runs", zebra_stripes=False)
        table.border_title = "Runs"
        yield table
        yield Static("", markup=False, id="run-error")
        yield Static("", markup=False, id="no-runs")

    def on_mount(self) -> None:
        super().on_mount()
        self._runs: dict[Path, Snapshot] = {}
        table = self.query_one("#runs", DataTable)
        for name in COLUMNS:
            table.add_column(name, key=name)
        table.focus()
        self._follow()

    @work(name="runs", group="runs", exclusive=True)
    async def _follow(self) -> None:
        while True:
            if self.is_current or not self._runs:
                snapshots = await asyncio.to_thread(list_runs, self.clip.root, self.clip.started())
                if self.closing:
                    return
                self._show({snapshot.path: snapshot for snapshot in snapshots})
            await asyncio.sleep(POLL_SECONDS)

    def _show(self, runs: dict[Path, Snapshot]) -> None:
        table = self.query_one("#runs", DataTable)
        table.display = bool(runs)
        self.query_one("#no-runs", Static).display = not runs
        self.query_one("#no-runs", Static).update(_welcome(str(self.clip.root)))
        chosen, known = self._chosen(), list(self._runs)
        self._runs = runs
        rows = {path: row_of(snapshot, self.clip.root) for path, snapshot in runs.items()}
        if list(runs) != known:
            table.clear()
            for path, row in rows.items():
                table.add_row(*row, key=str(path))
            if chosen in runs:
                table.move_cursor(row=list(runs).index(chosen))
        else:
            for path, row in rows.items():
                for column, value in zip(COLUMNS, row, strict=True):
                    if table.get_cell(str(path), column) != value:
                        table.update_cell(str(path), column, value, update_width=True)
        self._show_error()

    def _chosen(self) -> Path | None:
        row = self.query_one("#runs", DataTable).cursor_row
        paths = list(self._runs)
        return paths[row] if 0 <= row < len(paths) else None

    @on(DataTable.RowHighlighted)
    def _show_error(self) -> None:
        """The whole error of the chosen run, below the table."""
        chosen = self._chosen()
        error = _error_of(self._runs[chosen]) if chosen else None
        line = self.query_one("#run-error", Static)
        line.update(Text(printable(error or ""), f"bold {RED}"))
        line.display = error is not None

    @on(DataTable.RowSelected)
    def _row_selected(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        chosen = self._chosen()
        if chosen is not None:
            self.clip.open_run(chosen)

    def action_new(self) -> None:
        from clip_tui.screens.new_run import NewRunScreen

        self.app.push_screen(NewRunScreen())


def row_of(snapshot: Snapshot, root: Path) -> list[Text]:
    """A cell a column of COLUMNS."""
    status = snapshot.status
    step = f"{status.step:,} / {status.steps:,}" if status and status.steps else "–"
    seen = ago(time.time() - status.heartbeat) if status and status.heartbeat else "–"
    if snapshot.state.alive:
        seen = "now"
    path = snapshot.path
    name = str(path.relative_to(root)) if path.is_relative_to(root) and path != root else path.name
    return [
        state_text(snapshot.state),
        Text(printable(name, NAME_WIDTH), "bold"),
        Text(step, justify="right"),
        Text(printable(best_text(snapshot.best) or "–", 48)),
        Text(seen, "dim", justify="right"),
        Text(printable(_error_of(snapshot) or "", ERROR_WIDTH), RED),
    ]


def _error_of(snapshot: Snapshot) -> str | None:
    return snapshot.error if snapshot.state is State.FAILED else None


def _welcome(root: str) -> Text:
    return Text.assemble(
        ("No runs yet", "bold"),
        (f" below {printable(root)}\n\n", "dim"),
        ("n", f"bold {BLUE}"),
        "  starts one: choose a pair list, or let coloured shapes be drawn\n",
        ("clip-tui demo", f"bold {BLUE}"),
        "  in a shell shows everything in a minute",
        justify="center",
    )
