"""Everything that the trainer printed, with find and follow; the run's events; the system it runs on."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from clip_core.run.history import Event
from clip_core.run.metrics import ordered
from clip_core.run.paths import RunPaths
from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.numbers import number
from clip_tui.screens.page import Page
from clip_tui.tail import Tail
from clip_tui.theme import GREEN, RED, YELLOW
from clip_tui.watcher import Snapshot
from clip_tui.widgets.facts import Fact, Facts
from clip_tui.widgets.log_view import LogView

LINES_KEPT = 5000
EVENTS_SHOWN = 200
POLL_SECONDS = 0.5


class LogsScreen(Page):
    """/ finds, n and p go through the matches, f follows the end of the log; Tab or ^o moves between the panels."""

    PAGE = "logs"
    BINDINGS = bindings("logs")

    def __init__(self) -> None:
        super().__init__()
        self._run: Path | None = None
        self._words = ""
        self._match: int | None = None  # index of the line among those kept
        self._events: Sequence[Event] = ()

    @property
    def _log(self) -> LogView:
        return self.query_one("#log", LogView)

    def body(self) -> ComposeResult:
        with Horizontal(classes="query-line", id="find-line"):
            yield Static("find", markup=False, classes="query-label")
            yield Input(id="find", placeholder="words of a line of the log", compact=True)
        with Horizontal(id="logs"):
            log = LogView(LINES_KEPT, id="log")
            log.border_title = "train.log"
            yield log
            with Vertical(id="beside"):
                with VerticalScroll(id="system") as system:
                    system.border_title = "System"
                    yield Facts(id="system-facts")
                events = OptionList(id="events", markup=False, compact=True)
                events.border_title = "Events"
                yield events

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#find-line").display = False
        self._show_title()

    def run_came(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        log = self._log
        if snapshot.path != self._run:
            self._run = snapshot.path
            self._words, self._match = "", None
            log.clear()
            self._follow(Tail(RunPaths(snapshot.path).log))
        if self.focused is None:
            log.focus()
        self.query_one("#system-facts", Facts).show(system_facts(snapshot))
        self._show_events(snapshot.events)

    def _show_events(self, events: Sequence[Event]) -> None:
        latest = tuple(events)[-EVENTS_SHOWN:]
        if latest == self._events:
            return
        self._events = latest
        listed = self.query_one("#events", OptionList)
        at_end = listed.highlighted is None or listed.highlighted >= listed.option_count - 1
        kept = listed.highlighted
        listed.clear_options()
        listed.add_options(Option(event_line(event)) for event in latest)
        listed.highlighted = len(latest) - 1 if at_end or kept is None else min(kept, len(latest) - 1)
        listed.border_title = f"Events {len(latest)}"

    @work(name="log", group="log", exclusive=True)
    async def _follow(self, tail: Tail) -> None:
        while not self.closing:
            lines = await asyncio.to_thread(lambda: [printable(line) for line in tail.new_lines()])
            if lines and not self.closing:
                self._log.write(lines)
            await asyncio.sleep(POLL_SECONDS)

    # ------------------------------------------------------------ finding

    def action_find(self) -> None:
        self.query_one("#find-line").display = True
        self.set_focus(self.query_one("#find"))

    @on(Input.Submitted, "#find")
    def _find(self) -> None:
        self._words = self.query_one("#find", Input).value.strip().casefold()
        self.query_one("#find-line").display = bool(self._words)
        self.set_focus(self.query_one("#log"))
        matches = self._matches()
        self._match = matches[-1] if matches else None  # the latest one
        self._mark()

    def key_escape(self) -> None:
        """Leave the field; then take the marks away."""
        if self.query_one("#find").has_focus and self._words:
            self.set_focus(self.query_one("#log"))
            return
        self.query_one("#find", Input).value = ""
        self._find()

    def _matches(self) -> list[int]:
        if not self._words:
            return []
        return [index for index, line in enumerate(self._log.lines) if self._words in line.casefold()]

    def _mark(self) -> None:
        """Show the words that are sought, and the match that is reached."""
        log = self._log
        log.mark(self._words, -1 if self._match is None else self._match)
        if self._match is not None:
            log.follows = False
            log.show_line(self._match)
        self._show_title()

    def action_next_match(self) -> None:
        self._go(1)

    def action_previous_match(self) -> None:
        self._go(-1)

    def _go(self, by: int) -> None:
        matches = self._matches()
        if not matches:
            self.clip.say("No line has these words." if self._words else "Type words to find with /.")
            return
        later = [index for index in matches if self._match is None or (index - self._match) * by > 0]
        self._match = (min(later) if by > 0 else max(later)) if later else (matches[0] if by > 0 else matches[-1])
        self._mark()

    def _show_title(self) -> None:
        log = self._log
        parts = ["follows the end" if log.follows else "stands still · f follows"]
        if self._words:
            matches = self._matches()
            where = matches.index(self._match) + 1 if self._match in matches else 0
            parts.insert(0, f"match {where} of {len(matches)}" if matches else "no match")
        log.border_subtitle = " · ".join(parts)

    # ------------------------------------------------------------ other actions

    def action_follow(self) -> None:
        log = self._log
        log.follows = not log.follows
        if log.follows:
            self._match = None
            log.to_end()
        self._show_title()

    def action_events(self) -> None:
        self.set_focus(self.query_one("#log" if self.query_one("#events").has_focus else "#events"))

    def copied(self) -> str | None:
        """The event or the matching line that is selected, else what the log shows."""
        listed = self.query_one("#events", OptionList)
        if listed.has_focus and listed.highlighted is not None and listed.highlighted < len(self._events):
            return self._events[listed.highlighted].message
        if self._match is not None and self._match < len(self._log.lines):
            return self._log.lines[self._match]
        return "\n".join(self._log.in_sight)


def event_line(event: Event) -> Text:
    """`1,020  checkpoint written`, warnings and refused requests in their colours."""
    style = YELLOW if event.health else RED if event.outcome not in (None, "done") else GREEN if event.outcome else ""
    return Text().append(f"{event.step:>6,}  ", "dim").append(printable(event.message), style)


def system_facts(snapshot: Snapshot) -> list[Fact]:
    """Process, hardware, resolved settings and versions."""
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
    return facts


def _values(values: Mapping[str, object]) -> list[Fact]:
    return [
        (name.replace("_", " "), number(value) if isinstance(value, int | float) else str(value))
        for name, value in values.items()
        if value is not None
    ]
