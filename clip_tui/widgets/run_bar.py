"""The two lines at the top of every screen: which run, what it does, how far it is; and the tabs."""

from rich.text import Text
from textual.message import Message
from textual.widgets import Static

from clip_core.run.records import State
from clip_core.text import printable
from clip_tui.actions import TABS
from clip_tui.numbers import duration, percent
from clip_tui.theme import BLUE, STATE_STYLES
from clip_tui.watcher import Snapshot

_BAR = 18  # columns of the progress bar


class RunBar(Static):
    """Name and state of the open run."""

    _shown: Text | None = None

    def show(self, snapshot: Snapshot | None, root: str) -> None:
        text = bar_text(snapshot, root, self.app.size.width)
        if text != self._shown:
            self._shown = text
            self.update(text, layout=False)


def state_text(state: State, *, gone: bool = False) -> Text:
    """The state with its sign, in its colour; `gone`: its directory is."""
    if gone:
        return Text("✗ directory gone", STATE_STYLES[State.KILLED.value])
    sign = "●" if state.alive else "✓" if state is State.FINISHED else "○" if state is State.STOPPED else "✗"
    words = "killed (no heartbeat)" if state is State.KILLED else state.value
    return Text(f"{sign} {words}", STATE_STYLES[state.value])


def bar_text(snapshot: Snapshot | None, root: str, width: int) -> Text:
    """`clip-tui  NAME  ● running  ━━━━━━━╸─────  step 120 / 900  13%  2 min 05 s left`, without what does not fit."""
    text = Text.assemble((" clip-tui ", "bold reverse"), "  ", no_wrap=True)
    if snapshot is None:
        return text.append(printable(root, width - 14), "bold")
    text.append(printable(snapshot.name, max(12, width // 3)), "bold")
    text.append("  ").append_text(state_text(snapshot.state, gone=snapshot.gone))
    parts = _progress(snapshot)
    if parts and text.cell_len + sum(len(part) + 3 for part in parts) + _BAR + 3 <= width:
        text.append("   ").append_text(progress_bar(snapshot.share, _BAR, STATE_STYLES[snapshot.state.value]))
    for part in parts:
        if text.cell_len + len(part) + 3 <= width:
            text.append("   " + part)
    return text


def progress_bar(share: float, width: int, style: str) -> Text:
    """A bar of half blocks."""
    halves = round(2 * width * min(1.0, max(0.0, share)))
    filled = "█" * (halves // 2) + "▌" * (halves % 2)
    return Text(filled, style).append("·" * (width - len(filled)), "dim")


def _progress(snapshot: Snapshot) -> list[str]:
    status = snapshot.status
    if status is None or not status.steps:
        return []
    parts = [f"step {status.step:,} / {status.steps:,}", percent(snapshot.share, 0)]
    left = seconds_left(snapshot)
    if left is not None:
        parts.append(f"{duration(left)} left")
    return [*parts, f"epoch {status.epoch} / {status.epochs}"]


def seconds_left(snapshot: Snapshot) -> float | None:
    """By the latest pace of training; None where it is not known, or the run does not train."""
    status = snapshot.status
    if status is None or snapshot.state is not State.RUNNING or not snapshot.pace:
        return None
    return max(0, status.steps - status.step) / snapshot.pace


class TabBar(Static):
    """The screens, each with its key; a click leads there as the key does."""

    class Chosen(Message):
        """A tab was clicked."""

        def __init__(self, page: str) -> None:
            super().__init__()
            self.page = page

    def __init__(self, page: str) -> None:
        super().__init__(markup=False)
        self._page = page

    def on_mount(self) -> None:
        self.update(self._line())

    def _line(self) -> Text:
        text = Text(" ", no_wrap=True)
        for tab in TABS:
            key = tab.keys.split()[0]
            if tab.page == self._page:
                text.append(f" {key} {tab.label} ", "bold reverse")
            else:
                text.append(f" {key} ", f"bold {BLUE}").append(f"{tab.label} ", "dim")
        return text

    def on_click(self, event: object) -> None:
        x = getattr(event, "x", 0)
        start = 1
        for tab in TABS:
            end = start + len(tab.label) + 4
            if start <= x < end:
                self.post_message(self.Chosen(tab.page))
            start = end
