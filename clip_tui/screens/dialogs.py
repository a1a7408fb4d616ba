"""Dialogs: choose one of a list with a fuzzy filter, confirm, type one line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.fuzzy import Matcher
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from clip_core.text import printable

Value = TypeVar("Value")


@dataclass(frozen=True)
class Choice(Generic[Value]):
    """An entry of a list: what it stands for, its name, and a dimmed remark."""

    value: Value
    name: str
    remark: str = ""

    @property
    def line(self) -> Text:
        text = Text(printable(self.name), no_wrap=True, overflow="ellipsis")
        return text.append(f"  {printable(self.remark)}", "dim") if self.remark else text


def fuzzy(query: str, candidates: Sequence[str]) -> list[int]:
    """Indices of the candidates that have the query's characters in order, best match first; all of them if empty.

    Those that have the query as it is come before all others.
    """
    typed = query.strip()
    if not typed:
        return list(range(len(candidates)))
    matcher, whole = Matcher(typed), typed.casefold()
    scores = [(whole in text.casefold(), matcher.match(text), -index) for index, text in enumerate(candidates)]
    return [-place for is_in, score, place in sorted(scores, reverse=True) if is_in or score > 0]


def type_into(field: Input, event: events.Key) -> None:
    """A key that reached a dialog itself, as it came before the field had the focus."""
    if event.is_printable and event.character is not None:
        event.stop()
        event.prevent_default()
        field.insert_text_at_cursor(event.character)


class Chooser(ModalScreen[Choice[Value] | None], Generic[Value]):
    """Typing filters, the arrow keys move, Enter chooses, Escape leaves; dismissed with a choice, or with None."""

    PAGE = "dialog"
    AUTO_FOCUS = "#dialog-filter"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Cancel"),
        Binding("up", "move(-1)", show=False, priority=True),
        Binding("down", "move(1)", show=False, priority=True),
    ]

    def __init__(self, title: str, choices: Sequence[Choice[Value]], chosen: Value | None = None) -> None:
        super().__init__()
        self._title, self._choices, self._chosen = title, choices, chosen
        self._shown: list[Choice[Value]] = []

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = Text(self._title)  # as text, which is never markup
            dialog.border_subtitle = "enter chooses · esc cancels"
            yield Input(placeholder="type to filter", compact=True, id="dialog-filter")
            yield OptionList(id="dialog-list", markup=False, compact=True)

    def on_mount(self) -> None:
        self._filter("")

    def on_key(self, event: events.Key) -> None:
        type_into(self.query_one(Input), event)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._filter(event.value)

    def _filter(self, typed: str) -> None:
        names = [f"{choice.name} {choice.remark}" for choice in self._choices]
        self._shown = [self._choices[index] for index in fuzzy(typed, names)]
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options(Option(choice.line) for choice in self._shown)
        values = [choice.value for choice in self._shown]
        if values:
            options.highlighted = values.index(self._chosen) if self._chosen in values else 0

    @on(Input.Submitted)
    def _submitted(self) -> None:
        index = self.query_one(OptionList).highlighted
        if index is not None and index < len(self._shown):
            self.dismiss(self._shown[index])

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._shown[event.option_index])

    def action_move(self, by: int) -> None:
        options = self.query_one(OptionList)
        if self._shown:
            options.highlighted = ((options.highlighted or 0) + by) % len(self._shown)

    def action_leave(self) -> None:
        self.dismiss(None)


class Confirm(ModalScreen[str | None]):
    """A question whose answers are keys; dismissed with the key, or with None by Escape."""

    PAGE = "dialog"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Cancel")]

    def __init__(self, title: str, text: str, answers: dict[str, str]) -> None:
        super().__init__()
        self._title, self._text, self._answers = title, text, answers

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = Text(self._title)  # as text, which is never markup
            yield Static("\n".join(printable(line) for line in self._text.splitlines()), markup=False)
            line = Text("\n")
            for key, label in (*self._answers.items(), ("esc", "cancel")):
                line.append(key, "bold reverse").append(f" {label}   ")
            yield Static(line, markup=False)

    def on_key(self, event: events.Key) -> None:
        if event.character in self._answers:
            event.stop()  # the same key may do something else everywhere, as y copies
            event.prevent_default()
            self.dismiss(event.character)

    def action_leave(self) -> None:
        self.dismiss(None)


class Prompt(ModalScreen[str | None]):
    """One line to type; dismissed with it, or with None by Escape."""

    PAGE = "dialog"
    AUTO_FOCUS = "Input"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Cancel")]

    def __init__(self, title: str, value: str = "", placeholder: str = "") -> None:
        super().__init__()
        self._title, self._value, self._placeholder = title, value, placeholder

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = Text(self._title)  # as text, which is never markup
            dialog.border_subtitle = "enter accepts · esc cancels"
            yield Input(self._value, placeholder=self._placeholder, compact=True)

    def on_key(self, event: events.Key) -> None:
        type_into(self.query_one(Input), event)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)

    def action_leave(self) -> None:
        self.dismiss(None)
