"""The runs below the directory, with what each is doing now."""

import asyncio
import time
from pathlib import Path

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.widgets import DataTable, Static

from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.numbers import ago, percent
from clip_tui.screens.page import Page
from clip_tui.theme import BLUE
from clip_tui.watcher import RunsWatch, Snapshot
from clip_tui.widgets.run_bar import state_text

POLL_SECONDS = 1.0
COLUMNS = ("state", "run", "step", "recall@1", "zero-shot", "seen")


class RunsScreen(Page):
    """Enter attaches to a run; n starts a new one."""

    PAGE = "runs"
    BINDINGS = bindings("runs")

    def body(self) -> ComposeResult:
        table: DataTable[Text] = DataTable(cursor_type="row", id="runs", zebra_stripes=False)
        table.border_title = "Runs"
        yield table
        yield Static("", markup=False, id="no-runs")

    def on_mount(self) -> None:
        super().on_mount()
        self._paths: list[Path] = []
        table = self.query_one("#runs", DataTable)
        for name in COLUMNS:
            table.add_column(name, key=name)
        table.focus()
        self._follow()

    @work(name="runs", group="runs", exclusive=True)
    async def _follow(self) -> None:
        watch = RunsWatch(self.clip.root)
        while True:
            if self.is_current or not self._paths:
                just_started = [path for path, trainer in self.clip.trainers.items() if trainer.poll() is None]
                snapshots = await asyncio.to_thread(watch.refresh, just_started)
                if self.closing:
                    return
                self._show(snapshots)
            await asyncio.sleep(POLL_SECONDS)

    def _show(self, snapshots: list[Snapshot]) -> None:
        table = self.query_one("#runs", DataTable)
        table.display = bool(snapshots)
        self.query_one("#no-runs", Static).display = not snapshots
        self.query_one("#no-runs", Static).update(_welcome(str(self.clip.root)))
        paths = [snapshot.path for snapshot in snapshots]
        rows = [_row(snapshot, self.clip.root) for snapshot in snapshots]
        if paths != self._paths:
            chosen = self._chosen()
            table.clear()
            for path, row in zip(paths, rows, strict=True):
                table.add_row(*row, key=str(path))
            self._paths = paths
            if chosen in paths:
                table.move_cursor(row=paths.index(chosen))
            return
        for path, row in zip(paths, rows, strict=True):
            for column, value in zip(COLUMNS, row, strict=True):
                if table.get_cell(str(path), column) != value:
                    table.update_cell(str(path), column, value, update_width=True)

    def _chosen(self) -> Path | None:
        row = self.query_one("#runs", DataTable).cursor_row
        return self._paths[row] if 0 <= row < len(self._paths) else None

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


def _row(snapshot: Snapshot, root: Path) -> list[Text]:
    status = snapshot.status
    step = f"{status.step:,} / {status.steps:,}" if status and status.steps else "–"
    seen = ago(time.time() - status.heartbeat) if status and status.heartbeat else "–"
    if snapshot.state.alive:
        seen = "now"
    path = snapshot.path
    name = str(path.relative_to(root)) if path.is_relative_to(root) and path != root else path.name
    return [
        state_text(snapshot.state),
        Text(printable(name, 48), "bold"),
        Text(step, justify="right"),
        Text(percent(snapshot.best_recall), justify="right"),
        Text(percent(snapshot.evaluation.get("zero_shot_top1")), justify="right"),
        Text(seen, "dim", justify="right"),
    ]


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
