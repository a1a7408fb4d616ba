"""Retrieved images with their scores, in a grid that is paged and has a selected card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.message import Message
from textual.widgets import Static

from clip_core.text import printable
from clip_tui.theme import GREEN
from clip_tui.widgets.image_view import ImageView

SLOTS = 12


@dataclass(frozen=True)
class Found:
    """A retrieved image or caption.

    Attributes:
        rank: from 1. item: the path or the caption.
        caption: of an image, its captions.
        right: a true match.
        other: rank and similarity with the model that is compared, or None where it is not among its results.
    """

    rank: int
    item: str
    similarity: float
    caption: str = ""
    right: bool = False
    other: tuple[int, float] | None = None


class Card(Vertical):
    """One image below its score and its captions."""

    class Clicked(Message):
        """The card was clicked."""

        def __init__(self, card: "Card") -> None:
            super().__init__()
            self.card = card

    def compose(self) -> ComposeResult:
        yield Static("", markup=False, classes="card-score")
        yield Static("", markup=False, classes="card-caption")
        yield ImageView()

    def show(self, found: Found | None, *, selected: bool) -> None:
        self.set_class(found is None, "-empty")
        self.set_class(selected, "-selected")
        if found is None:
            self.query_one(ImageView).show(None)
            return
        path = Path(found.item)
        self.query_one(ImageView).show(path)
        score = Text("▸" if selected else " ", "bold", no_wrap=True, overflow="ellipsis")
        score.append(f"{found.rank}. {found.similarity:.3f}", "bold reverse" if selected else "bold")
        if found.right:
            score.append(" ✓", GREEN)
        if found.other is not None:
            score.append_text(change(found.rank, found.other[0]))
        score.append(f"  {printable(path.name)}", "dim")
        self.query_one(".card-score", Static).update(score)
        self.query_one(".card-caption", Static).update(
            Text(printable(found.caption, 80), no_wrap=True, overflow="ellipsis")
        )

    def on_click(self) -> None:
        self.post_message(self.Clicked(self))


class Results(Container):
    """A page of images, best first; the arrow keys select a card and turn the page at its ends."""

    can_focus = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", show=False),
        Binding("right", "move(1)", show=False),
        Binding("up", "line(-1)", show=False),
        Binding("down", "line(1)", show=False),
        Binding("home", "select(0)", show=False),
    ]

    class Selected(Message):
        """Another result is selected: its index among all."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    class NeedsMore(Message):
        """The end of what was fetched is reached."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.found: Sequence[Found] = ()
        self.selected = 0

    def compose(self) -> ComposeResult:
        for index in range(SLOTS):
            yield Card(classes="-extra" if index >= SLOTS // 2 else "")

    def on_mount(self) -> None:
        self.show(())

    @property
    def page_size(self) -> int:
        """How many cards there is room for."""
        return SLOTS // 2 if "-low" in self.screen.classes else SLOTS

    @property
    def first(self) -> int:
        """Index of the first result of the page."""
        return self.selected // self.page_size * self.page_size

    def show(self, found: Sequence[Found], selected: int | None = None) -> None:
        self.found = found
        self.selected = min(self.selected if selected is None else selected, max(0, len(found) - 1))
        first = self.first
        for slot, card in enumerate(self.query(Card)):
            index = first + slot
            there = slot < self.page_size and index < len(found)
            card.show(found[index] if there else None, selected=there and index == self.selected)

    def select(self, index: int) -> None:
        """Select a result, and turn to its page."""
        if not self.found:
            return
        if index >= len(self.found):
            self.post_message(self.NeedsMore())
        self.show(self.found, max(0, min(index, len(self.found) - 1)))
        self.post_message(self.Selected(self.selected))

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self.show, self.found)

    def on_card_clicked(self, message: Card.Clicked) -> None:
        self.focus()
        self.select(self.first + list(self.query(Card)).index(message.card))

    def action_move(self, by: int) -> None:
        self.select(self.selected + by)

    def action_line(self, by: int) -> None:
        self.select(self.selected + by * (4 if "-wide" in self.screen.classes else 3))

    def action_select(self, index: int) -> None:
        self.select(index)


def change(rank: int, other: int) -> Text:
    """How far a result moves from one model to the other: ` ▲3`, ` ▼12`, or ` =`."""
    if rank == other:
        return Text(" =", "dim")
    return Text(f" ▲{rank - other}" if other < rank else f" ▼{other - rank}", GREEN if other < rank else "dim")
