"""The open run as it trains: curves, the probe with its images, scores, and requests to the trainer."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Grid, Horizontal
from textual.widgets import Input, Static

from clip_core.errors import RunError
from clip_core.run.reader import RunReader
from clip_core.run.records import Probe, State
from clip_core.run.requests import RequestKind
from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.charts import axis_end, charts
from clip_tui.numbers import number
from clip_tui.screens.page import Page
from clip_tui.status_line import status_line, validation_rows
from clip_tui.theme import GREEN, RED
from clip_tui.watcher import RunWatch, Snapshot
from clip_tui.widgets.axes import Smoothing, View, XAxis, panned, zoomed
from clip_tui.widgets.heat_map import HeatMap
from clip_tui.widgets.plot import Plot
from clip_tui.widgets.probe_view import PairPanel, ProbePanel, rank_of, rows_of
from clip_tui.widgets.sparks import Sparks

PLOTS = 4
ROOMY = 150  # columns from which there is room for the names of the probe's images
OVERLAY_SECONDS = 2.0  # between two looks at the other runs
_Choice = TypeVar("_Choice")
_CURSOR_STEPS = 100  # key presses from one end of a chart to the other


class LiveScreen(Page):
    """Follows a run; the trainer never waits for it."""

    PAGE = "live"
    BINDINGS = bindings("live")

    def __init__(self) -> None:
        super().__init__()
        self._run: Path | None = None
        self._first_chart = 0
        self._view = View()
        self._others: list[Snapshot] = []  # the runs that are drawn over this one
        self._probe: Probe | None = None  # the one that is shown
        self._probe_at: int | None = None  # its step, where an older one was chosen; None follows the run
        self._flagged: frozenset[tuple[str, str]] = frozenset()

    def body(self) -> ComposeResult:
        yield Static("", markup=False, id="status-line")
        yield Static("", markup=False, id="error")
        with Grid(id="plots"):
            for index in range(PLOTS):
                yield Plot(id=f"plot-{index}")
        yield Sparks(id="sparks")
        with Horizontal(id="below"):
            probe = ProbePanel(id="probe")
            probe.border_title = "Probe"
            yield probe
            pair = PairPanel(id="pair-panel")
            pair.border_title = "Image"
            yield pair
            scores = Static("", markup=False, id="scores")
            scores.border_title = "Validation"
            yield scores
        yield Static("", markup=False, id="last-line")
        lr = Input(placeholder="a number, or a factor as x0.5; Enter requests it, Esc leaves", id="lr", compact=True)
        lr.display = False
        yield lr

    def on_mount(self) -> None:
        self._follow_others()

    def on_resize(self) -> None:
        self.set_class(self.size.width >= ROOMY, "-roomy")

    # ------------------------------------------------------------ what is shown

    def run_came(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        if snapshot.path != self._run:
            self._opened(snapshot)
        width = self.query_one("#status-line", Static).content_size.width
        _show_line(self.query_one("#status-line", Static), status_line(snapshot, time.time(), width), stays=True)
        _show_line(self.query_one("#error", Static), _error(snapshot))
        self._show_charts(snapshot)
        self._show_scores(snapshot)
        if self._probe_at is None or self._probe is None:
            self._probe = snapshot.probe
        self._show_probe(snapshot)
        _show_line(self.query_one("#last-line", Static), _last_line(snapshot), stays=True)

    def _opened(self, snapshot: Snapshot) -> None:
        """Another run: nothing of the one before stays."""
        self._run, self._first_chart = snapshot.path, 0
        self._probe, self._probe_at = snapshot.probe, None
        self._view = replace(self._view, first=None, last=None, cursor=None)
        self._flagged = frozenset()
        self.query_one(HeatMap).reset()
        self._read_flags(snapshot.path)

    def _show_charts(self, snapshot: Snapshot) -> None:
        every = charts(snapshot, self._view, self._others)
        for index in range(PLOTS):
            self.query_one(f"#plot-{index}", Plot).show(every[(self._first_chart + index) % len(every)], self._view)
        self.query_one("#sparks", Sparks).show(snapshot, axis_end((snapshot,)))

    def _show_scores(self, snapshot: Snapshot) -> None:
        panel = self.query_one("#scores", Static)
        height = max(1, panel.content_size.height)
        rows = validation_rows(snapshot)[: height - 1]
        about = _about(snapshot)[: max(0, height - 1 - len(rows))]
        if getattr(panel, "shown", None) != (rows, about):
            panel.shown = rows, about  # type: ignore[attr-defined]
            panel.update(scores_table(rows, about))

    def _show_probe(self, snapshot: Snapshot) -> None:
        probe = self._probe
        panel, heat = self.query_one(ProbePanel), self.query_one(HeatMap)
        state = (probe, snapshot.probe_steps, self._flagged, heat.cursor, self.size)
        if getattr(self, "_probe_shown", None) == state:
            return
        self._probe_shown = state
        rows = rows_of(probe)
        panel.border_title = f"Probe {rows}x{rows}, step {probe.step:,}" if probe and rows else "Probe"
        panel.show(probe, snapshot.probe_steps, self._flagged)
        pair = self.query_one(PairPanel)
        row, column = heat.cursor
        name = Path(probe.images[row % rows]).name if probe and rows else "Image"
        pair.border_title = Text(printable(name, 40)).markup
        pair.show(probe, row, column)

    # ------------------------------------------------------------ the charts

    def _change_view(self, view: View) -> None:
        self._view = view
        if self.snapshot:
            self._show_charts(self.snapshot)

    @property
    def _end(self) -> float:
        """The last step of the axis."""
        return axis_end((self.snapshot, *self._others)) if self.snapshot else 1.0

    def _middle(self) -> float:
        first, last = self._view.first or 0.0, self._end if self._view.last is None else self._view.last
        return self._view.cursor if self._view.cursor is not None else (first + last) / 2

    def action_more(self) -> None:
        if self.snapshot:
            shown = sum(1 for index in range(PLOTS) if self.query_one(f"#plot-{index}").display)
            self._first_chart = (self._first_chart + shown) % len(charts(self.snapshot, self._view, self._others))
            self._show_charts(self.snapshot)

    def action_log_axis(self, axis: str) -> None:
        view = self._view
        self._change_view(replace(view, log_y=not view.log_y) if axis == "y" else replace(view, log_x=not view.log_x))

    def action_smooth(self) -> None:
        self._change_view(replace(self._view, smoothing=_next(list(Smoothing), self._view.smoothing)))

    def action_x_axis(self) -> None:
        self._change_view(replace(self._view, axis=_next(list(XAxis), self._view.axis)))

    def action_cursor(self, by: int) -> None:
        """Move the cursor over all charts; it begins at the end of the curves."""
        first, last = self._view.first or 0.0, self._end if self._view.last is None else self._view.last
        if self._view.cursor is None:
            begin = min(last, float(self.snapshot.step)) if self.snapshot else last
            self._change_view(replace(self._view, cursor=begin))
            return
        cursor = self._view.cursor + by * max(1.0, (last - first) / _CURSOR_STEPS)
        self._change_view(replace(self._view, cursor=float(round(min(max(first, cursor), last)))))

    def action_zoom(self, factor: float) -> None:
        self._change_view(zoomed(self._view, factor, self._middle(), self._end))

    def action_pan(self, share: float) -> None:
        self._change_view(panned(self._view, share, self._end))

    def action_whole(self) -> None:
        self._change_view(replace(self._view, first=None, last=None, cursor=None))

    def action_large(self) -> None:
        """One chart over the whole width, or all of them."""
        self.toggle_class("-one-chart")
        self.call_after_refresh(self._show_again)

    @on(Plot.Moved)
    def _plot_clicked(self, message: Plot.Moved) -> None:
        self._change_view(replace(self._view, cursor=float(round(message.step))))

    @on(Plot.Zoomed)
    def _plot_zoomed(self, message: Plot.Zoomed) -> None:
        self._change_view(zoomed(self._view, message.factor, message.step, self._end))

    @on(Plot.Panned)
    def _plot_panned(self, message: Plot.Panned) -> None:
        self._change_view(panned(self._view, -message.share, self._end))

    @work(name="overlays", group="overlays", exclusive=True)
    async def _follow_others(self) -> None:
        """Read the runs that are drawn over this one, while there are any."""
        watches: dict[Path, RunWatch] = {}
        while not self.closing:
            paths = [path for path in self.clip.overlays if path != self._run]
            watches = {path: watches.get(path) or RunWatch(path) for path in paths}
            others = [await asyncio.to_thread(watch.refresh) for watch in watches.values()]
            if self.closing:
                return
            if others != self._others:
                self._others = others
                if self.snapshot and self.is_current:
                    self._show_charts(self.snapshot)
            await asyncio.sleep(OVERLAY_SECONDS)

    # ------------------------------------------------------------ the probe

    @on(HeatMap.Chosen)
    def _cell_chosen(self, message: HeatMap.Chosen) -> None:
        if self.snapshot:
            self._show_probe(self.snapshot)
        if message.opened:
            self._open_cell(message.row, message.column)

    def _open_cell(self, row: int, column: int) -> None:
        from clip_tui.screens.pair import Cell, PairScreen

        probe, rows = self._probe, rows_of(self._probe)
        if probe is None or not rows:
            return
        row, column = row % rows, column % rows
        own = probe.captions[row]
        cell = Cell(
            Path(probe.images[row]), probe.captions[column], probe.similarity[row][column], row == column, own,
            rank_of(probe, row), probe.step, (probe.images[row], own) in self._flagged,
        )  # fmt: skip
        self.app.push_screen(PairScreen(cell))

    def action_probe(self) -> None:
        """The next image, with its own caption."""
        heat = self.query_one(HeatMap)
        rows = max(1, rows_of(self._probe))
        row = (heat.cursor[0] + 1) % rows
        heat.choose(row, row)

    def action_open_pair(self) -> None:
        self._open_cell(*self.query_one(HeatMap).cursor)

    def action_scrub(self, by: int) -> None:
        """To an earlier or a later evaluation; the last one follows the run again."""
        snapshot = self.snapshot
        if snapshot is None or not snapshot.probe_steps:
            return
        steps = list(snapshot.probe_steps)
        at = steps.index(self._probe_at) if self._probe_at in steps else len(steps) - 1
        at = min(max(0, at + by), len(steps) - 1)
        self._probe_at = steps[at] if at < len(steps) - 1 else None
        self._read_probe(snapshot.path, steps[at])

    @on(ProbePanel.Scrubbed)
    def _scrubbed(self, message: ProbePanel.Scrubbed) -> None:
        self.action_scrub(message.by)

    @work(name="probe", group="probe", exclusive=True)
    async def _read_probe(self, run: Path, step: int) -> None:
        reader = RunReader(run)
        probe = await asyncio.to_thread(reader.probe, reader.paths.probe(step))
        if self.closing or run != self._run:
            return
        if probe is None:
            self.clip.say(f"The probe of step {step} cannot be read.", severity="warning")
        elif self.snapshot:
            self._probe = probe
            self._show_probe(self.snapshot)

    def action_flag(self) -> None:
        """Flag the chosen image and its caption as a bad pair, or take the flag away."""
        probe, rows = self._probe, rows_of(self._probe)
        if probe is None or not rows or self._run is None:
            return
        row = self.query_one(HeatMap).cursor[0] % rows
        self._write_flag(self._run, probe.images[row], probe.captions[row])

    @work(name="flags", group="flags")
    async def _write_flag(self, run: Path, image: str, caption: str) -> None:
        reader = RunReader(run)
        try:
            flags = await asyncio.to_thread(reader.toggle_flag, image, caption)
        except RunError as error:
            self.clip.say_problem(error)
            return
        except OSError as error:
            self.clip.say_problem(RunError(f"cannot write {reader.paths.flags} ({error.strerror}); check its folder."))
            return
        pairs = [(pair.image, pair.caption) for pair in flags.pairs]
        self._flags_came(run, frozenset(pairs))
        done = "flagged as bad" if (image, caption) in pairs else "no longer flagged"
        self.clip.say(f"{Path(image).name} {done}; {len(pairs)} in {reader.paths.flags} (clip-train --leave-out).")

    @work(name="read-flags", group="read-flags", exclusive=True)
    async def _read_flags(self, run: Path) -> None:
        try:
            flags = await asyncio.to_thread(RunReader(run).flags)
        except RunError as error:
            self.clip.say_problem(error)
            return
        self._flags_came(run, frozenset((pair.image, pair.caption) for pair in flags.pairs))

    def _flags_came(self, run: Path, flagged: frozenset[tuple[str, str]]) -> None:
        if run == self._run and not self.closing:
            self._flagged = flagged
            if self.snapshot:
                self._show_probe(self.snapshot)

    # ------------------------------------------------------------ requests

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what makes sense in the run's state has a key in the footer."""
        state = self.snapshot.state if self.snapshot else None
        if action == "ask" and parameters == ("pause",):
            return state is State.RUNNING
        if action == "resume":
            return state is State.PAUSED or bool(self.snapshot and can_resume(self.snapshot))
        if action in ("ask", "stop", "learning_rate"):
            return bool(state and state.alive)
        return True

    def action_ask(self, request: RequestKind, value: float | None = None) -> None:
        """Append a request to the trainer's queue; the line of requests shows it until it is acknowledged."""
        if self.snapshot is None:
            return
        try:
            RunReader(self.snapshot.path).ask(request, value)
        except OSError as error:
            self.clip.say_problem(
                RunError(f"cannot write a request to {self.snapshot.path} ({error.strerror}); check its permissions.")
            )

    def action_stop(self) -> None:
        self.action_ask("stop")

    def action_resume(self) -> None:
        """After a pause the trainer is asked; a run that ended gets a new trainer from its last checkpoint."""
        snapshot = self.snapshot
        if snapshot is not None and snapshot.state is State.PAUSED:
            self.action_ask("resume")
        elif snapshot is not None and can_resume(snapshot):
            self.clip.start_trainer(snapshot.path, [], resume=True)

    def action_learning_rate(self) -> None:
        """Open the field for another learning rate."""
        field, now = self.query_one("#lr", Input), self.snapshot.value("lr") if self.snapshot else None
        field.border_title = None
        field.value = "" if now is None else f"{now:.3g}"
        field.display, self.query_one("#last-line").display = True, False
        field.focus()
        field.select_all()

    @on(Input.Submitted, "#lr")
    def _learning_rate_typed(self, event: Input.Submitted) -> None:
        event.stop()
        now = self.snapshot.value("lr") if self.snapshot else None
        value = typed_learning_rate(event.value, now)
        if isinstance(value, str):
            self.clip.say(value, severity="error")
            return
        self._close_field()
        self.action_ask("learning_rate", value)

    def _close_field(self) -> None:
        self.query_one("#lr", Input).display = False
        self.query_one("#last-line").display = True
        self.set_focus(None)

    def key_escape(self) -> None:
        if self.query_one("#lr", Input).display:
            self._close_field()
        else:
            super().key_escape()


def typed_learning_rate(text: str, now: float | None) -> float | str:
    """A learning rate as it was typed, or a sentence that says what is wrong with it.

    Args:
        text: a number, or `x` and a factor of the present one.
        now: the present learning rate.
    """
    typed = text.strip().lower()
    factor = typed[:1] in ("x", "*", "×")
    try:
        value = float(typed[1:] if factor else typed)
    except ValueError:
        return f"{printable(text, 20)!r} is not a learning rate: type a number as 3e-4, or a factor as x0.5."
    if factor:
        if now is None:
            return "The learning rate is not known yet: type a number as 3e-4."
        value *= now
    return value if 0 < value <= 1 else f"A learning rate is above 0 and at most 1, not {value:g}."


def can_resume(snapshot: Snapshot) -> bool:
    """Whether the run ended early and has a checkpoint to go on from."""
    return snapshot.resumable and snapshot.state in (State.STOPPED, State.KILLED, State.FAILED)


def scores_table(rows: Sequence[tuple[str, str, str, bool]], about: Sequence[tuple[str, str]]) -> Group:
    """The last evaluation beside the best checkpoint, then facts of the run."""
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, justify="right")
    table.add_row(Text(""), Text("now", "dim"), Text("best", "dim"))
    for label, now, best, better in rows:
        table.add_row(Text(label, "dim"), Text(now, GREEN if better else "bold"), Text(best))
    lines = [
        Text(f"{name} ", "dim", no_wrap=True, overflow="ellipsis").append(printable(value)) for name, value in about
    ]
    return Group(table, *lines)


def _about(snapshot: Snapshot) -> list[tuple[str, str]]:
    record = snapshot.record
    if record is None:
        return []
    parameters, data = record.parameters, record.data
    return [
        ("", ""),
        ("parameters", f"{number(parameters.image)} image + {number(parameters.text)} text"),
        ("pairs", f"{number(data.train_pairs)} train + {number(data.val_pairs)} validation"),
        ("device", record.device_name),
    ]


def _error(snapshot: Snapshot) -> Text:
    """Why the run failed, whole; and the way back where it has nothing to resume from."""
    if not snapshot.error or snapshot.state.alive:
        return Text()
    text = Text(printable(snapshot.error), f"bold {RED}")
    if not snapshot.resumable:
        text.append("  It failed before its first checkpoint: 1, then n opens the form again.", "dim")
    return text


def _last_line(snapshot: Snapshot) -> Text:
    """The last line that the trainer printed."""
    line = next((line for line in reversed(snapshot.log) if line.strip()), "")
    return Text(f"log: {printable(line)}", "dim", no_wrap=True, overflow="ellipsis")


def _show_line(line: Static, text: Text, *, stays: bool = False) -> None:
    """Show a line; it takes no room while it is empty, unless it `stays`."""
    if getattr(line, "shown", None) != text:
        line.shown = text  # type: ignore[attr-defined]
        line.update(text)
    if not stays:
        line.display = bool(text.plain)


def _next(values: Sequence[_Choice], value: _Choice) -> _Choice:
    return values[(values.index(value) + 1) % len(values)]
