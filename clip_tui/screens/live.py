"""The open run as it trains: curves, numbers, a probe, the end of the log, and requests to the trainer."""

import time
from collections.abc import Iterator
from pathlib import Path

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Grid, Horizontal
from textual.widgets import Static

from clip_core.errors import RunError
from clip_core.run.history import Event
from clip_core.run.metrics import charts_of
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_core.run.requests import Request, RequestKind
from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.charts import charts, legend
from clip_tui.numbers import number
from clip_tui.screens.page import Page
from clip_tui.theme import GREEN, RED, YELLOW
from clip_tui.watcher import Snapshot, best_text
from clip_tui.widgets.facts import Fact, Facts
from clip_tui.widgets.plot import Plot
from clip_tui.widgets.probe_view import ProbeView

PLOTS = 4
ANSWERED_SECONDS = 60.0  # for so long an acknowledged request is shown
_TITLE_WIDTH = 14


class LiveScreen(Page):
    """Follows a run; the trainer never waits for it."""

    PAGE = "live"
    BINDINGS = bindings("live")

    def __init__(self) -> None:
        super().__init__()
        self._run: Path | None = None
        self._first_chart = 0
        self._log_axis = False

    def body(self) -> ComposeResult:
        yield Static("", markup=False, id="error")
        with Grid(id="plots"):
            for index in range(PLOTS):
                yield Plot(id=f"plot-{index}")
        with Horizontal(id="below"):
            facts = Facts(id="numbers")
            facts.border_title = "Numbers"
            yield facts
            probe = ProbeView(id="probe")
            probe.border_title = "Probe"
            yield probe
            log = Static("", markup=False, id="log-tail")
            log.border_title = "Log"
            yield log
        yield Static("", markup=False, id="requests")
        yield Static("", markup=False, id="last-line")

    def run_came(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        if snapshot.path != self._run:
            self._run, self._first_chart = snapshot.path, 0
            self.query_one("#probe", ProbeView).reset()
        self._show_charts(snapshot)
        numbers = self.query_one("#numbers", Facts)
        numbers.show(facts(snapshot, numbers.content_size.width - _TITLE_WIDTH - 2))
        self.query_one("#probe", ProbeView).show(snapshot.probe)
        tail = self.query_one("#log-tail", Static)
        lines = [printable(line) for line in snapshot.log[-max(1, tail.content_size.height) :]]
        tail.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))
        _show_line(self.query_one("#error", Static), _error(snapshot))
        _show_line(self.query_one("#requests", Static), requests_line(snapshot, time.time()))
        self.query_one("#last-line", Static).update(_last_line(snapshot))

    def _show_charts(self, snapshot: Snapshot) -> None:
        every = charts(snapshot, log=self._log_axis)
        for index in range(PLOTS):
            self.query_one(f"#plot-{index}", Plot).show(every[(self._first_chart + index) % len(every)])

    # ------------------------------------------------------------ actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what makes sense in the run's state has a key in the footer."""
        state = self.snapshot.state if self.snapshot else None
        if action == "ask" and parameters == ("pause",):
            return state is State.RUNNING
        if action == "resume":
            return state is State.PAUSED or bool(self.snapshot and can_resume(self.snapshot))
        if action in ("ask", "stop"):
            return bool(state and state.alive)
        return True

    def action_ask(self, request: RequestKind) -> None:
        """Append a request to the trainer's queue; the line of requests shows it until it is acknowledged."""
        if self.snapshot is None:
            return
        try:
            RunReader(self.snapshot.path).ask(request)
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

    def action_more(self) -> None:
        if self.snapshot:
            shown = sum(1 for index in range(PLOTS) if self.query_one(f"#plot-{index}").display)
            self._first_chart = (self._first_chart + shown) % len(charts(self.snapshot, log=False))
            self._show_charts(self.snapshot)

    def action_log_scale(self) -> None:
        self._log_axis = not self._log_axis
        if self.snapshot:
            self._show_charts(self.snapshot)

    def action_probe(self) -> None:
        self.query_one("#probe", ProbeView).next()


def can_resume(snapshot: Snapshot) -> bool:
    """Whether the run ended early and has a checkpoint to go on from."""
    return snapshot.resumable and snapshot.state in (State.STOPPED, State.KILLED, State.FAILED)


def requests_line(snapshot: Snapshot, now: float) -> Text:
    """Requests that the trainer has not acknowledged, then the outcome of the latest ones, on one line."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for request in snapshot.pending:
        name = request.kind if isinstance(request, Request) else f"invalid request {request.id}"
        state = "pending" if snapshot.state.alive else "no trainer runs"
        text.append(f"{printable(name, 60)}: {state}   ", YELLOW)
    answered = [event for event in snapshot.events if event.outcome is not None]
    for event in reversed(answered):
        if now - event.time <= ANSWERED_SECONDS:
            text.append_text(_outcome(event)).append("   ")
    text.rstrip()
    return text


def _outcome(event: Event) -> Text:
    if event.outcome == "done":
        return Text(f"✓ {printable(event.message)}", GREEN)
    return Text(f"✗ {printable(event.message)}", RED)


def facts(snapshot: Snapshot, width: int) -> list[Fact]:
    """The last value of every metric, a line a chart, in values of at most `width` columns; then the run itself."""
    found: list[Fact] = [("best", best_text(snapshot.best) or "–")]
    for axis, metrics in charts_of(snapshot.curves):
        values = [(legend(axis, metric), metric.text(value)) for metric in metrics
                  if (value := snapshot.value(metric.key)) is not None]  # fmt: skip
        parts = [f"{name} {value}".strip() for name, value in values]
        found += [(printable(axis.title, _TITLE_WIDTH) if first else "", line) for first, line in _lines(parts, width)]
    return found + list(_about(snapshot))


def _lines(parts: list[str], width: int) -> Iterator[tuple[bool, str]]:
    """`parts` joined to lines of at most `width`, each with whether it is the first one."""
    line, first = "", True
    for part in parts:
        if line and len(line) + 2 + len(part) > width:
            yield first, line
            line, first = "", False
        line = f"{line}  {part}" if line else part
    if line:
        yield first, line


def _about(snapshot: Snapshot) -> Iterator[Fact]:
    record = snapshot.record
    if record is None:
        return
    yield "parameters", f"{number(record.parameters.image)} image + {number(record.parameters.text)} text"
    yield "pairs", f"{number(record.data.train_pairs)} train + {number(record.data.val_pairs)} validation"
    yield "device", record.device_name


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
    return Text(printable(line), "dim", no_wrap=True, overflow="ellipsis")


def _show_line(line: Static, text: Text) -> None:
    """Show a line that takes no room while it is empty."""
    line.update(text)
    line.display = bool(text.plain)
