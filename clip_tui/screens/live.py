"""The open run as it trains: curves, the probe with its images, scores, and requests to the trainer."""

import time
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Grid, Horizontal
from textual.widgets import Static

from clip_core.errors import RunError
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_core.run.requests import RequestKind
from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.numbers import number
from clip_tui.screens.dialogs import Prompt
from clip_tui.screens.live_charts import PLOTS, ChartsPage
from clip_tui.screens.live_probe import ProbePage
from clip_tui.status_line import status_line, validation_rows
from clip_tui.theme import GREEN, RED
from clip_tui.watcher import Snapshot
from clip_tui.widgets.heat_map import HeatMap
from clip_tui.widgets.plot import Plot
from clip_tui.widgets.probe_view import PairPanel, ProbePanel
from clip_tui.widgets.sparks import Sparks

ROOMY = 150  # columns from which there is room for the names of the probe's images
STATUS_SECONDS = 10.0
SLIM = 78  # columns below which there is no room for the scores


class LiveScreen(ChartsPage, ProbePage):
    """Follows a run; the trainer never waits for it."""

    PAGE = "live"
    BINDINGS = bindings("live")

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
            scores.border_title, scores.can_focus = "Validation", True
            yield scores
        yield Static("", markup=False, id="last-line")

    def on_resize(self) -> None:
        self.set_class(self.size.width >= ROOMY, "-roomy")
        self.set_class(self.size.width < SLIM, "-slim")

    def on_mount(self) -> None:
        self.set_interval(STATUS_SECONDS, self._show_status)

    # ------------------------------------------------------------ what is shown

    def run_came(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        if snapshot.path != self._run:
            self._reset_charts()
            self._reset_probe(snapshot.path)
        self._show_status()
        _show_line(self.query_one("#error", Static), _error(snapshot))
        self._show_charts(snapshot)
        self._show_scores(snapshot)
        self._follow_probe(snapshot)
        _show_line(self.query_one("#last-line", Static), _last_line(snapshot), stays=True)

    def _show_status(self) -> None:
        """The line below the tabs; outcomes of requests leave it after a while, also when nothing else changes."""
        line = self.query_one("#status-line", Static)
        if self.snapshot is not None:
            _show_line(line, status_line(self.snapshot, time.time(), line.content_size.width), stays=True)

    def _show_scores(self, snapshot: Snapshot) -> None:
        panel = self.query_one("#scores", Static)
        height = max(1, panel.content_size.height)
        rows = validation_rows(snapshot, intervals=True)
        if scores_width(rows) > panel.content_size.width:  # a name that is cut may be that of another score
            rows = validation_rows(snapshot)
        rows = rows[: height - 1]
        about = _about(snapshot)[: max(0, height - 1 - len(rows))]
        if getattr(panel, "shown", None) != (rows, about):
            panel.shown = rows, about  # type: ignore[attr-defined]
            panel.update(scores_table(rows, about), layout=False)

    def copied(self) -> str | None:
        """What has the focus: the values of a chart, the scores, the chosen pair; else the path of the run."""
        focused = self.focused
        if isinstance(focused, Plot):
            return focused.values_text()
        if focused is not None and focused.id == "scores" and self.snapshot:
            return "\n".join("\t".join(row[:3]) for row in validation_rows(self.snapshot))
        if isinstance(focused, HeatMap | PairPanel) and (pair := self.chosen_pair):
            return "\t".join(pair)
        return super().copied()

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
        """Ask for another learning rate."""
        now = self.snapshot.value("lr") if self.snapshot else None
        is_now = "" if now is None else f", now {now:.3g}"
        dialog = Prompt(f"Learning rate{is_now}", "" if now is None else f"{now:.3g}", "a number, or a factor as x0.5")
        self.app.push_screen(dialog, self._learning_rate_typed)

    def _learning_rate_typed(self, typed: str | None) -> None:
        if typed is None:
            return
        value = typed_learning_rate(typed, self.snapshot.value("lr") if self.snapshot else None)
        if isinstance(value, str):
            self.clip.say(value, severity="error")
        else:
            self.action_ask("learning_rate", value)


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


def scores_width(rows: Sequence[tuple[str, str, str, bool]]) -> int:
    """Columns that the table of scores needs."""
    columns = zip(*(row[:3] for row in rows), strict=True)
    return sum(max(map(cell_len, column)) + 1 for column in columns)


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
        Text(no_wrap=True, overflow="ellipsis").append(f"{name} ", "dim").append(printable(value))
        for name, value in about
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
        line.update(text, layout=not stays)
    if not stays:
        line.display = bool(text.plain)
