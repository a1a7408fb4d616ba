"""Retrieved images with their scores, in a grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.widgets import Static

from clip_core.text import printable
from clip_tui.theme import GREEN
from clip_tui.widgets.image_view import ImageView

SLOTS = 12


@dataclass(frozen=True)
class Found:
    """A retrieved image, its cosine similarity, its captions, and whether it is a true match."""

    image: Path
    similarity: float
    caption: str
    right: bool = False


class Card(Vertical):
    """One image below its score and its captions."""

    def compose(self) -> ComposeResult:
        yield Static("", markup=False, classes="card-score")
        yield Static("", markup=False, classes="card-caption")
        yield ImageView()

    def show(self, rank: int, found: Found | None) -> None:
        self.set_class(found is None, "-empty")
        if found is None:
            return
        self.query_one(ImageView).show(found.image)
        score = Text(f"{rank}. {found.similarity:.3f}", "bold", no_wrap=True)
        if found.right:
            score.append(" ✓", GREEN)
        score.append(f"  {printable(found.image.name)}", "dim")
        self.query_one(".card-score", Static).update(score)
        self.query_one(".card-caption", Static).update(
            Text(printable(found.caption, 80), no_wrap=True, overflow="ellipsis")
        )


class Results(Container):
    """The best images, best first."""

    can_focus = True

    def compose(self) -> ComposeResult:
        for index in range(SLOTS):
            yield Card(classes="-extra" if index >= SLOTS // 2 else "")

    def on_mount(self) -> None:
        self.show(())

    def show(self, found: Sequence[Found]) -> None:
        for index, card in enumerate(self.query(Card)):
            card.show(index + 1, found[index] if index < len(found) else None)
