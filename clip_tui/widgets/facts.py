"""Names and values in aligned columns."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text
from textual.widgets import Static

from clip_core.text import printable

Fact = tuple[str, str] | None  # None is a line left free


class Facts(Static):
    """`name  value` lines; names and values may come from files, and are never markup."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(markup=False, id=id, classes=classes)
        self.facts: tuple[Fact, ...] = ()

    def show(self, facts: Sequence[Fact]) -> None:
        if tuple(facts) != self.facts:
            self.facts = tuple(facts)
            self.update(facts_table(self.facts))


def facts_table(facts: Sequence[Fact]) -> Table:
    """Names in a column as wide as the longest, values beside it."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")  # wraps too: in a narrow panel the values would have no column left
    table.add_column()
    for fact in facts:
        name, value = fact or ("", "")
        table.add_row(Text(printable(name, 40)), Text(printable(value)))
    return table
