"""The open run as it trains: curves, numbers, a probe, the end of the log, and requests to the trainer."""

from typing import Any, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Grid, Horizontal
from textual.widgets import Static

from clip_core.errors import RunError
from clip_core.run.paths import is_run
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_core.run.requests import Request
from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.charts import charts
from clip_tui.numbers import number, percent
from clip_tui.screens.page import Page
from clip_tui.theme import RED
from clip_tui.watcher import Snapshot
from clip_tui.widgets.facts import Fact, Facts
from clip_tui.widgets.plot import Plot
from clip_tui.widgets.probe_view import ProbeView

PLOTS = 4
SAID = {
    "pause": "pause after this step",
    "resume": "go on",
    "stop": "write a checkpoint and end",
    "checkpoint": "write a checkpoint",
    "evaluate": "evaluate",
}


class LiveScreen(Page):
    """Follows a run; the trainer never waits for it."""

    PAGE = "live"
    BINDINGS = bindings("live")

    def __init__(self) -> None:
        super().__init__()
        self._first_chart = 0
        self._log_loss = False

    def body(self) -> ComposeResult:
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
        yield Static("", markup=False, id="last-line")

    def run_came(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        self._show_charts(snapshot)
        self.query_one("#numbers", Facts).show(numbers(snapshot))
        self.query_one("#probe", ProbeView).show(snapshot.probe)
        tail = self.query_one("#log-tail", Static)
        lines = [printable(line) for line in snapshot.log[-max(1, tail.content_size.height) :]]
        tail.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))
        self.query_one("#last-line", Static).update(_last_line(snapshot))

    def _show_charts(self, snapshot: Snapshot) -> None:
        every = charts(snapshot, log_loss=self._log_loss)
        for index in range(PLOTS):
            self.query_one(f"#plot-{index}", Plot).show(every[(self._first_chart + index) % len(every)])

    # ------------------------------------------------------------ actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what makes sense in the run's state has a key in the footer."""
        state = self.snapshot.state if self.snapshot else None
        if action == "ask" and parameters == ("pause",):
            return state is State.RUNNING
        if action == "resume":
            return state in (State.PAUSED, State.STOPPED, State.KILLED, State.FAILED)
        if action in ("ask", "stop"):
            return bool(state and state.alive)
        return True

    def action_ask(self, request: str) -> None:
        if self.snapshot is None:
            return
        try:
            RunReader(self.snapshot.path).ask(cast(Request, request))
        except OSError as error:
            self.clip.say_problem(RunError(f"cannot ask {self.snapshot.path} ({error.strerror})."))
            return
        self.clip.say(f"Asked the trainer to {SAID[request]}.")

    def action_stop(self) -> None:
        self.action_ask("stop")

    def action_resume(self) -> None:
        """After a pause the trainer is asked; a stopped run gets a new trainer from its last checkpoint."""
        snapshot = self.snapshot
        if snapshot is None:
            return
        if snapshot.state is State.PAUSED:
            self.action_ask("resume")
        elif is_run(snapshot.path):
            self.clip.start_trainer(snapshot.path, [], resume=True)
        else:
            self.clip.say("This run never began; start a new one (1, then n).", severity="warning")

    def action_more(self) -> None:
        if self.snapshot:
            shown = sum(1 for index in range(PLOTS) if self.query_one(f"#plot-{index}").display)
            self._first_chart = (self._first_chart + shown) % len(charts(self.snapshot, log_loss=False))
            self._show_charts(self.snapshot)

    def action_log_scale(self) -> None:
        self._log_loss = not self._log_loss
        if self.snapshot:
            self._show_charts(self.snapshot)

    def action_probe(self) -> None:
        self.query_one("#probe", ProbeView).next()


def numbers(snapshot: Snapshot) -> list[Fact]:
    """What is worth reading as a number, the validation scores first."""
    train, validation = snapshot.train, snapshot.evaluation

    def recall(k: int) -> str:
        ways = [percent(validation.get(f"{way}_recall@{k}")) for way in ("image_to_text", "text_to_image")]
        return f"{ways[0]:>8}{ways[1]:>9}"

    zero_shot, best = percent(validation.get("zero_shot_top1")), percent(snapshot.best_recall)
    return [
        ("held out", "    i→t      t→i"),
        ("recall@1", recall(1)),
        ("recall@5", recall(5)),
        ("recall@10", recall(10)),
        ("zero-shot", f"{zero_shot:>8}"),
        ("loss", f"{number(train.get('loss')):>8}  held out {number(validation.get('val_loss'))}"),
        ("images/s", f"{number(train.get('images_per_second')):>8}  wait {percent(train.get('data_wait'), 0)}"),
        ("lr", f"{number(train.get('lr')):>8}  temp {number(train.get('temperature'), 3)}"),
        ("memory", f"{_memory(train):>8}  grad {number(train.get('grad_norm'), 3)}"),
        ("best R@1", f"{best:>8}"),
        *_about(snapshot),
    ]


def _memory(train: Any) -> str:
    value = train.get("memory_mb")
    return f"{value:,.0f} MB" if isinstance(value, int | float) else "–"


def _about(snapshot: Snapshot) -> list[Fact]:
    config = snapshot.config or {}
    parameters, data = config.get("parameters"), config.get("data")
    facts: list[Fact] = []
    if isinstance(parameters, dict):
        facts.append(("parameters", "  " + " + ".join(number(value) for value in parameters.values())))
    if isinstance(data, dict):
        facts.append(("pairs", f"  {number(data.get('train_pairs'))} train, {number(data.get('val_pairs'))} held out"))
    if config.get("device_name"):
        facts.append(("device", f"  {config['device_name']}"))
    return facts


def _last_line(snapshot: Snapshot) -> Text:
    """Why the run ended badly, or the last thing that the trainer said."""
    if snapshot.status and snapshot.status.error:
        return Text(printable(snapshot.status.error), f"bold {RED}", no_wrap=True, overflow="ellipsis")
    line = next((line for line in reversed(snapshot.log) if line.strip()), "")
    style = f"bold {RED}" if snapshot.state is State.KILLED or snapshot.exit_code else "dim"
    return Text(printable(line), style, no_wrap=True, overflow="ellipsis")
