"""Everything that the trainer printed, the run's events, and the system it runs on."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import RichLog

from clip_core.run.metrics import ordered
from clip_core.run.paths import RunPaths
from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.numbers import number
from clip_tui.screens.page import Page
from clip_tui.tail import Tail
from clip_tui.watcher import Snapshot
from clip_tui.widgets.facts import Fact, Facts

LINES_KEPT = 5000
EVENTS = 8  # the latest ones
POLL_SECONDS = 0.5


class LogsScreen(Page):
    """f follows the end of the log, or lets it stand; Tab moves between the log and the system."""

    PAGE = "logs"
    BINDINGS = bindings("logs")

    def __init__(self) -> None:
        super().__init__()
        self._run: Path | None = None

    def body(self) -> ComposeResult:
        with Horizontal(id="logs"):
            log = RichLog(max_lines=LINES_KEPT, wrap=False, markup=False, highlight=False, id="log")
            log.border_title = "train.log"
            yield log
            with VerticalScroll(id="system") as system:
                system.border_title = "System"
                yield Facts(id="system-facts")

    def run_came(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        log = self.query_one("#log", RichLog)
        if snapshot.path != self._run:
            self._run = snapshot.path
            log.clear()
            self._follow(Tail(RunPaths(snapshot.path).log))
        if self.focused is None:
            log.focus()
        self.query_one("#system-facts", Facts).show(system_facts(snapshot))

    @work(name="log", group="log", exclusive=True)
    async def _follow(self, tail: Tail) -> None:
        log = self.query_one("#log", RichLog)
        while not self.closing:
            for line in await asyncio.to_thread(tail.new_lines):
                log.write(Text(printable(line), no_wrap=True))
            await asyncio.sleep(POLL_SECONDS)

    def action_follow(self) -> None:
        log = self.query_one("#log", RichLog)
        log.auto_scroll = not log.auto_scroll
        self.clip.say("Following the end of the log." if log.auto_scroll else "No longer following; f follows again.")
        if log.auto_scroll:
            log.scroll_end(animate=False)


def system_facts(snapshot: Snapshot) -> list[Fact]:
    """Process, hardware, resolved settings, versions, and the latest events."""
    record, status = snapshot.record, snapshot.status
    facts: list[Fact] = [("state", snapshot.state.value)]
    if status:
        facts += [("pid", f"{status.pid} on {status.host}")]
    if snapshot.exit_code is not None:
        facts.append(("exit code", str(snapshot.exit_code)))
    if record:
        facts.append(("device", record.device_name))
    for metric in ordered(snapshot.system):
        value = snapshot.value(metric.key)
        if value is not None:
            facts.append((metric.label, metric.text(value)))
    if record:
        facts += [None, *_values(record.resolved.model_dump(exclude={"device"})), None, *_values(record.versions)]
        if record.git:
            facts.append(("git", record.git))
    if snapshot.events:
        facts += [None, *(("event", f"step {event.step}: {event.message}") for event in snapshot.events[-EVENTS:])]
    return facts


def _values(values: Mapping[str, object]) -> list[Fact]:
    return [
        (name.replace("_", " "), number(value) if isinstance(value, int | float) else str(value))
        for name, value in values.items()
        if value is not None
    ]
