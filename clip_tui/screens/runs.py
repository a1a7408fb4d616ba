"""The runs below the directory: what each is doing now, its trend, the numbers of its best checkpoint, notes."""

import asyncio
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.cells import cell_len
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import DataTable, Input, Static

from clip_core.errors import RunError
from clip_core.run.paths import RunPaths
from clip_core.run.records import Label, State
from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.numbers import ago
from clip_tui.run_list import (
    ORDERS,
    TREND,
    Item,
    Order,
    RunList,
    arranged,
    bring_back,
    contents,
    left_aside,
    set_aside,
    shortened,
    sparkline,
)
from clip_tui.screens.dialogs import Confirm, Prompt
from clip_tui.screens.page import Page
from clip_tui.theme import BLUE, DIM_BLUE, RED, YELLOW
from clip_tui.watcher import Snapshot, best_text
from clip_tui.widgets.keys import Rows
from clip_tui.widgets.run_bar import state_text

POLL_SECONDS = 0.5
UNDO_SECONDS = 60.0  # for so long a deleted run can be brought back
NAME_WIDTH, BEST_WIDTH, NOTE_WIDTH = 32, 30, 60
# In the order in which they are drawn; those with the largest number give way first in a narrow terminal.
COLUMNS = {"": 0, "state": 0, "run": 0, "step": 1, "loss": 4, "best": 2, "seen": 3, "note": 5}


class RunsScreen(Page):
    """Enter attaches to a run; n starts a new one."""

    PAGE = "runs"
    BINDINGS = bindings("runs")

    def __init__(self) -> None:
        super().__init__()
        self._items: Sequence[Item] = ()  # all
        self._shown: list[Item] = []  # after filter and order
        self._marked: list[Path] = []
        self._columns: dict[str, int] = {}
        self._aside: dict[Path, float] = {}  # deleted, not erased yet, and until when
        self._read = False
        self._opened: Path | None = None  # the run that was open when the list was shown last

    def body(self) -> ComposeResult:
        with Horizontal(classes="query-line", id="filter-line"):
            yield Static("filter", markup=False, classes="query-label")
            yield Input(id="filter", placeholder="letters of the name, the state or the note", compact=True)
        table: Rows[Text] = Rows(cursor_type="row", id="runs", zebra_stripes=False)
        table.border_title = "Runs"
        yield table
        yield Static("", markup=False, id="run-error")
        yield Static("", markup=False, id="no-runs")

    def on_mount(self) -> None:
        super().on_mount()
        self._list = RunList(self.clip.root)
        self.order: Order = next((each for each in ORDERS if each == self.clip.settings.sort_runs), "latest")
        self.query_one("#filter-line").display = False
        self.set_focus(self.query_one("#runs"))
        self._follow()

    async def on_unmount(self) -> None:
        """What was deleted is erased now; nothing can bring it back any more."""
        await asyncio.to_thread(_erase, list(self._aside))

    @work(name="runs", group="runs", exclusive=True)
    async def _follow(self) -> None:
        await asyncio.to_thread(lambda: _erase(left_aside(self.clip.root)))
        while not self.closing:
            if (self.is_current or not self._read) and await asyncio.to_thread(self._list.is_due):
                items = await asyncio.to_thread(self._list.read, self.clip.started())
                if self.closing:
                    return
                self._items, self._read = items, True
                self._show()
            gone = [path for path, until in self._aside.items() if time.monotonic() > until]
            for path in gone:
                del self._aside[path]
                await asyncio.to_thread(_erase, [path])
            await asyncio.sleep(POLL_SECONDS if self._list.complete else 0.0)

    def _read_again(self) -> None:
        self._list.read_soon()

    # ------------------------------------------------------------ the table

    def run_came(self, snapshot: Snapshot | None) -> None:
        """The screen is in front again, or has another size; another run may have been opened meanwhile."""
        if self._read:
            self._show()
        opened = snapshot.path if snapshot else None
        if opened != self._opened:
            paths = [item.path for item in self._shown]
            if opened in paths:
                self._opened = opened
                self.query_one("#runs", DataTable).move_cursor(row=paths.index(opened))

    def _show(self) -> None:
        table = self.query_one("#runs", DataTable)
        there = bool(self._items)
        table.display = there
        self.query_one("#no-runs", Static).display = not there
        self.query_one("#no-runs", Static).update(_welcome(str(self.clip.root)))
        chosen = self._chosen()
        before = [item.path for item in self._shown]
        self._shown = arranged(self._items, self.query_one("#filter", Input).value, self.order)
        rows = {item.path: self._row(item) for item in self._shown}
        columns = fitting(list(rows.values()), self.size.width - 5)
        paths = list(rows)
        if paths != before or columns != self._columns:
            self._fill(rows, columns)
            if chosen is not None and chosen.path in rows:
                table.move_cursor(row=paths.index(chosen.path))
        else:
            for path, row in rows.items():
                for column, value in row.items():
                    if column in columns and table.get_cell(str(path), column) != value:
                        table.update_cell(str(path), column, value)
        hidden = len(self._items) - len(self._shown)
        table.border_subtitle = f"by {self.order}" + (f" · {hidden:,} filtered out" if hidden else "")
        self._show_error()

    def _fill(self, rows: dict[Path, dict[str, Text]], columns: dict[str, int]) -> None:
        """Draw the table anew; its columns are as wide as their widest cell, so that none is cut."""
        table = self.query_one("#runs", DataTable)
        table.clear(columns=columns != self._columns)
        if columns != self._columns:
            self._columns = columns
            for name, width in columns.items():
                table.add_column(name, key=name, width=width)
        for path, row in rows.items():
            table.add_row(*(row[name] for name in columns), key=str(path))

    def _row(self, item: Item) -> dict[str, Text]:
        snapshot, status = item.snapshot, item.snapshot.status
        step = f"{status.step:,} / {status.steps:,}" if status and status.steps else "–"
        seen = ago(time.time() - status.heartbeat) if status and status.heartbeat else "–"
        marks = Text("■" if item.path in self._marked else " ", YELLOW).append("★" if item.label.pinned else " ", BLUE)
        return {
            "": marks,
            "state": state_text(snapshot.state, gone=snapshot.gone),
            "run": Text(shortened(printable(self._called(item)), NAME_WIDTH), "bold"),
            "step": Text(step, justify="right"),
            "loss": Text(sparkline(item.trend), DIM_BLUE),
            "best": Text(printable(best_text(snapshot.best) or "–", BEST_WIDTH)),
            "seen": Text("now" if snapshot.state.alive else seen, "dim", justify="right"),
            "note": _remark(item),
        }

    def _called(self, item: Item) -> str:
        if item.label.name:
            return item.label.name
        path, root = item.path, self.clip.root
        return str(path.relative_to(root)) if path.is_relative_to(root) and path != root else path.name

    def _chosen(self) -> Item | None:
        row = self.query_one("#runs", DataTable).cursor_row
        return self._shown[row] if 0 <= row < len(self._shown) else None

    @on(DataTable.RowHighlighted)
    def _show_error(self) -> None:
        """The whole error of the chosen run, or its note, below the table."""
        item = self._chosen()
        error = error_of(item) if item else None
        line = self.query_one("#run-error", Static)
        note = item.label.note if item else ""
        line.update(Text(printable(error), f"bold {RED}") if error else Text(printable(note), "dim"))
        line.display = bool(error or note)

    # ------------------------------------------------------------ filter, order, marks

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        if event.value:
            self.query_one("#filter-line").display = True
        self._show()

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        self.query_one("#filter-line").display = bool(self.query_one("#filter", Input).value)
        self.set_focus(self.query_one("#runs"))

    def key_escape(self) -> None:
        """Leave the filter, then empty it, then take the marks away."""
        field = self.query_one("#filter", Input)
        if field.has_focus and field.value:
            self._filter_done()
        elif field.value or field.has_focus:
            if field.value:
                self.did("the filter taken away", partial(self._filter_with, field.value))
            self._filter_with("")
        elif self._marked:
            self.did("the marks taken away", partial(self._mark_all, self._marked))
            self._mark_all([])

    def _filter_with(self, typed: str) -> None:
        self.query_one("#filter", Input).value = typed
        self._filter_done()

    def _mark_all(self, paths: list[Path]) -> None:
        self._marked = paths
        self._show()

    def action_filter(self) -> None:
        self.query_one("#filter-line").display = True
        self.set_focus(self.query_one("#filter"))

    def action_sort(self) -> None:
        self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
        self.clip.settings.sort_runs = self.order
        self.clip.save_settings()
        self._show()

    def action_mark(self) -> None:
        item = self._chosen()
        if item is not None:
            if item.path in self._marked:
                self._marked.remove(item.path)
            else:
                self._marked.append(item.path)
            self._show()

    def action_compare(self) -> None:
        there = {item.path for item in self._items}
        marked = [path for path in self._marked if path in there]
        item = self._chosen()
        if len(marked) == 1 and item is not None and item.path not in marked:
            marked.append(item.path)  # the marked one and the one under the cursor
        self.clip.compare(marked)

    def copied(self) -> str | None:
        item = self._chosen()
        return str(item.path) if item else None

    # ------------------------------------------------------------ opening and starting

    @on(DataTable.RowSelected)
    def _row_selected(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        item = self._chosen()
        if item is not None:
            self.clip.open_run(item.path)

    def action_new(self) -> None:
        from clip_tui.screens.new_run import NewRunScreen

        self.app.push_screen(NewRunScreen())

    def action_clone(self) -> None:
        from clip_core.run.reader import RunReader
        from clip_tui.screens.new_run import NewRunScreen

        item = self._chosen()
        if item is None:
            return
        try:
            record = RunReader(item.path).record()
        except RunError as error:
            self.clip.say_problem(error)
            return
        self.app.push_screen(NewRunScreen(clone=record.config, of=self._called(item)))

    # ------------------------------------------------------------ labels and deletion

    def action_pin(self) -> None:
        item = self._chosen()
        if item is not None:
            self._change(item, "pinned", not item.label.pinned, "pinning")

    def action_rename(self) -> None:
        item = self._chosen()
        if item is not None:
            prompt = Prompt("Name in the list", printable(self._called(item)), f"the folder stays {item.path.name}")
            self.app.push_screen(prompt, partial(self._typed, item, "name"))

    def action_note(self) -> None:
        item = self._chosen()
        if item is not None:
            prompt = Prompt("Note", printable(item.label.note), "what this run is about")
            self.app.push_screen(prompt, partial(self._typed, item, "note"))

    def _typed(self, item: Item, field: str, typed: str | None) -> None:
        if typed is not None:
            self._change(item, field, printable(typed.strip(), 200), f"the {field}")

    def _change(self, item: Item, field: str, value: str | bool, what: str) -> None:
        """Change one field of the label as it is now: the list may not have read the change before this one yet."""
        path = RunPaths(item.path).label
        before = Label.find(path) or Label()
        try:
            before.model_copy(update={field: value}).write(path)
        except OSError as error:
            self.clip.say_problem(RunError(f"{item.path} cannot be written to ({error.strerror})."))
            return
        self.did(what, partial(self._label_back, before, path))
        self._read_again()

    def _label_back(self, before: Label, path: Path) -> None:
        before.write(path)
        self._read_again()

    def action_delete(self) -> None:
        item = self._chosen()
        if item is not None and item.snapshot.state.alive:
            self.clip.say(f"{self._called(item)} is training; stop it first: enter, then s.", severity="warning")
        elif item is not None:
            self._confirm(item)

    @work(name="contents", group="contents", exclusive=True)
    async def _confirm(self, item: Item) -> None:
        held = await asyncio.to_thread(contents, item.path)
        text = f"{item.path}\n{held}\nu brings it back for {UNDO_SECONDS:.0f} seconds, and until the app is left."
        dialog = Confirm(f"Delete {printable(self._called(item), 60)}?", text, {"y": "delete"})
        self.app.push_screen(dialog, partial(self._delete, item))

    def _delete(self, item: Item, answer: str | None) -> None:
        if answer != "y":
            return
        try:
            aside = set_aside(item.path)
        except RunError as error:
            self.clip.say_problem(error)
            return
        self._aside[aside] = time.monotonic() + UNDO_SECONDS
        self.did(f"the deletion of {item.path.name}", partial(self._restore, aside, item.path))
        self.clip.say(f"{item.path.name} is deleted; u brings it back for {UNDO_SECONDS:.0f} s.")
        self.clip.trainers.pop(item.path, None)
        self._read_again()

    def _restore(self, aside: Path, run: Path) -> None:
        if aside not in self._aside:
            raise RunError(f"{run.name} has been erased for good.")
        bring_back(aside, run)
        del self._aside[aside]
        self._read_again()


def fitting(rows: Sequence[dict[str, Text]], width: int) -> dict[str, int]:
    """The columns that fit, each with the width of its widest cell; the note takes what is left."""
    needed = {name: max([cell_len(name), *(row[name].cell_len for row in rows)]) for name in COLUMNS}
    needed["loss"] = max(needed["loss"], TREND) if any(row["loss"].plain for row in rows) else 0
    kept = {name: size for name, size in needed.items() if size or name == ""}
    for name in sorted(COLUMNS, key=lambda name: -COLUMNS[name]):
        if sum(size + 2 for size in kept.values()) <= width or COLUMNS[name] == 0:
            break
        if name == "note" and name in kept:  # what is left, if that is enough to read
            left = width - sum(size + 2 for other, size in kept.items() if other != "note") - 2
            if left >= 16:
                kept["note"] = left
                break
        kept.pop(name, None)
    for name in sorted(needed, key=lambda name: COLUMNS[name]):  # a narrow one has room where a wide one had none
        if name not in kept and needed[name] and sum(size + 2 for size in kept.values()) + needed[name] + 2 <= width:
            kept[name] = needed[name]
    return {name: kept[name] for name in COLUMNS if name in kept}


def _remark(item: Item) -> Text:
    """Why it failed, else its note, on one line."""
    error = error_of(item)
    return Text(printable(error or item.label.note, NOTE_WIDTH), RED if error else "dim", overflow="ellipsis")


def error_of(item: Item) -> str | None:
    return item.snapshot.error if item.snapshot.state is State.FAILED else None


def _erase(paths: Sequence[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


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
