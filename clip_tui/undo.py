"""Ctrl-Z: the last change on the screen in front is taken back, whether it was typed into a field or done by a key."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from textual.widget import Widget
from textual.widgets import Input, Select, Switch

Field = Input | Select[Any] | Switch

PAUSE_SECONDS = 1.0  # without a key, after which typing is another change
KEPT = 200  # changes


@dataclass
class Change:
    """A change and the way back.

    Attributes:
        scope: the screen on which it can be taken back, by its scope in the table of actions.
        what: in words, as `the deletion of birds`; empty where the screen shows it anyway.
        back: takes it back. Raises: RunError, OSError.
        owner: the field that was typed into; the change is gone with it.
        at: when it was last added to, time.monotonic().
    """

    scope: str
    what: str
    back: Callable[[], None]
    owner: Field | None = None
    at: float = field(default_factory=time.monotonic)


class Undo:
    """The changes of all screens, the last one last."""

    def __init__(self) -> None:
        self._changes: list[Change] = []
        self._values: WeakKeyDictionary[Widget, Any] = WeakKeyDictionary()  # of each field, as it was seen last

    def did(self, scope: str, what: str, back: Callable[[], None]) -> None:
        """Something was changed that `back` takes back."""
        self._add(Change(scope, what, back))

    def take(self, scope: str) -> Change | None:
        """The last change on a screen, which is forgotten; the caller takes it back."""
        self._changes = [each for each in self._changes if each.owner is None or each.owner.is_attached]
        for index in range(len(self._changes) - 1, -1, -1):
            if self._changes[index].scope == scope:
                return self._changes.pop(index)
        return None

    def forget_typing(self, owner: Field) -> None:
        """What was typed into a field is part of a larger change, which is about to be added."""
        self._changes = [each for each in self._changes if each.owner is not owner]
        self._values[owner] = owner.value

    # ------------------------------------------------------------ fields

    def saw(self, widget: Widget) -> None:
        """A field has the focus now: what it holds is what typing is taken back to."""
        if isinstance(widget, Input | Select | Switch):
            self._values[widget] = widget.value

    def changed(self, widget: Field, scope: str) -> None:
        """A field has another value. One that the user cannot have changed is only remembered."""
        before, value = self._values.get(widget), widget.value
        self._values[widget] = value
        if before is None or before == value or (isinstance(widget, Input) and not widget.has_focus):
            return
        last = self._changes[-1] if self._changes else None
        if isinstance(widget, Input) and last is not None and last.owner is widget and _is_recent(last):
            last.at = time.monotonic()
        else:
            self._add(Change(scope, "", lambda: self._restore(widget, before), widget))

    def _restore(self, widget: Field, value: Any) -> None:
        self._values[widget] = value
        widget.value = value
        if isinstance(widget, Input):
            widget.cursor_position = len(value)

    def _add(self, change: Change) -> None:
        self._changes.append(change)
        del self._changes[:-KEPT]


def _is_recent(change: Change) -> bool:
    return time.monotonic() - change.at < PAUSE_SECONDS
