"""The Help page: all keys, from the table of actions."""

from typing import ClassVar

from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from clip_tui.actions import ACTIONS, APP
from clip_tui.theme import BLUE

TITLES = {APP: "All screens", "new": "New run", "compare": "Comparison of runs"}


class HelpScreen(ModalScreen[None]):
    """Escape, q or ? closes it."""

    PAGE = "help"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q", "dismiss", "Close")]

    def __init__(self, page: str = APP) -> None:
        """Args: page: the screen that is in front, by its scope; its keys come first."""
        super().__init__()
        self._page = page

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help") as scroll:
            scroll.border_title = "Help"
            scroll.border_subtitle = "esc closes"
            yield Static(help_page(self._page), markup=False)


def help_page(page: str = APP) -> Group:
    """The table of actions, screen by screen: first those of a screen, then those of all screens, then the others."""
    scopes = sorted(dict.fromkeys(action.scope for action in ACTIONS), key=lambda scope: (scope != page, scope != APP))
    parts: list[Text | Table] = []
    for scope in scopes:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, width=max(len(action.keys) for action in ACTIONS) + 2)
        table.add_column(no_wrap=True, width=max(len(action.label) for action in ACTIONS))
        table.add_column()
        for action in ACTIONS:
            if action.scope == scope:
                table.add_row(Text(f"  {action.keys}", "bold"), Text(action.label), Text(action.help, "dim"))
        parts += [Text(TITLES.get(scope, scope.capitalize()), f"bold {BLUE}"), table, Text()]
    last = "In a text field letters are typed: Esc leaves it, F1 to F7 change the screen."
    return Group(*parts, Text(last, "dim"))
