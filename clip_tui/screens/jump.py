"""Jump mode: a letter on everything that can have the focus; pressing it goes there."""

from collections.abc import Iterator
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Static

from clip_tui.actions import TABS

LETTERS = "asdfghjklqwertyuiopzxcvbnm"


class JumpScreen(ModalScreen[Widget | str | None]):
    """Dismissed with a widget, with the name of a page, or with None."""

    PAGE = "jump"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Cancel")]

    def __init__(self, below: Screen[object]) -> None:
        super().__init__()
        self._targets = dict(zip(LETTERS, visible_targets(below), strict=False))

    def compose(self) -> ComposeResult:
        for letter, widget in self._targets.items():
            label = Static(f" {letter} ", classes="jump", markup=False)
            label.styles.offset = widget.region.offset
            yield label
        first, last = TABS[0].keys.split()[0], TABS[-1].keys.split()[0]
        hint = f"a letter jumps there   {first} to {last} change the screen   esc cancels"
        yield Static(hint, id="jump-hint", markup=False)

    def on_key(self, event: events.Key) -> None:
        """Every key ends here, so that none reaches the screen below as well."""
        key = event.character or ""
        if event.key == "escape":
            return
        event.stop()
        event.prevent_default()
        page = next((tab.page for tab in TABS if key and key in tab.keys.split()), None)
        if key in self._targets:
            self.dismiss(self._targets[key])
        elif page is not None:
            self.dismiss(page)

    def on_resize(self, event: events.Resize) -> None:
        if self.is_current and event.size != self.app.size:
            self.dismiss(None)

    def action_leave(self) -> None:
        self.dismiss(None)


def visible_targets(screen: Screen[object]) -> Iterator[Widget]:
    """What can have the focus and is on the screen now, in reading order."""
    shown = [widget for widget in screen.focus_chain if widget.region and screen.region.overlaps(widget.region)]
    inside = [widget for widget in shown if _reachable(widget, screen)]
    yield from sorted(inside, key=lambda widget: (widget.region.y, widget.region.x))


def _reachable(widget: Widget, screen: Screen[object]) -> bool:
    """Its top left corner is not scrolled out of sight."""
    x, y = widget.region.offset
    parents = (parent for parent in widget.ancestors if isinstance(parent, Widget) and parent is not screen)
    return all(parent.region.contains(x, y) for parent in parents)
