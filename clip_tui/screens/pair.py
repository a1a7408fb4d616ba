"""One pair of the probe, large: an image, a caption, and how similar they are."""

from pathlib import Path
from typing import ClassVar, NamedTuple

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from clip_core.text import printable
from clip_tui.theme import GREEN
from clip_tui.widgets.image_view import ImageView


class Cell(NamedTuple):
    """A cell of the probe's matrix.

    Attributes:
        own: whether the caption is the image's own.
        rank: of the image's own caption, from 1.
        flagged: whether the image and its own caption are flagged as bad.
    """

    image: Path
    caption: str
    similarity: float
    own: bool
    own_caption: str
    rank: int
    step: int
    flagged: bool


class PairScreen(ModalScreen[None]):
    """Escape, Enter or q closes it."""

    PAGE = "pair"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss", "Close")]

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self._cell = cell

    def compose(self) -> ComposeResult:
        with Vertical(id="pair-large") as box:
            box.border_title = Text(printable(self._cell.image.name, 60) or "Image")  # as text, which is never markup
            box.border_subtitle = "esc closes"
            yield ImageView(self._cell.image)
            yield Static(describe(self._cell), markup=False, id="pair-text")


def describe(cell: Cell) -> Text:
    """The captions of a cell in two or three lines."""
    text = Text()
    text.append("own caption: " if cell.own else "caption: ", "dim").append(printable(cell.caption), "bold")
    text.append(f"\ncosine {cell.similarity:.3f} at step {cell.step:,}", "dim")
    text.append(f", its own caption has rank {cell.rank}" if not cell.own else f", rank {cell.rank}", "dim")
    if not cell.own:
        text.append("\nown caption: ", "dim").append(printable(cell.own_caption), GREEN)
    if cell.flagged:
        text.append("\nflagged as bad in flags.json", "bold")
    return text
