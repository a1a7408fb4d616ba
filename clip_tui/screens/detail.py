"""One result, large: its image, its captions, its rank and score with each model."""

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from clip_core.text import printable
from clip_tui.theme import GREEN
from clip_tui.widgets.image_view import ImageView
from clip_tui.widgets.results import Found, change


class Detail(Vertical):
    """The panel beside the results, and the content of the large view."""

    def compose(self) -> ComposeResult:
        yield ImageView()
        with VerticalScroll(classes="detail-scroll", can_focus=False):
            yield Static("", markup=False, classes="detail-text")

    def show(self, found: Found | None, *, image: bool = True) -> None:
        view = self.query_one(ImageView)
        view.show(Path(found.item) if found is not None and image else None)
        view.display = image
        self.query_one(".detail-text", Static).update(detail_text(found, image=image) if found else "")


def detail_text(found: Found, *, image: bool) -> Text:
    text = Text(f"{found.rank:,}. {found.similarity:.4f}", "bold")
    if found.right:
        text.append(" ✓ right answer", GREEN)
    if found.other is not None:
        text.append("\n").append(f"compared: {found.other[0]:,}. {found.other[1]:.4f}")
        text.append_text(change(found.rank, found.other[0]))
    if image:
        for caption in found.caption.split("; ") if found.caption else ["no caption"]:
            text.append("\n" + printable(caption))
        path = Path(found.item)
        text.append(f"\n{printable(path.name)}", "bold").append(f"\n{printable(str(path.parent))}", "dim")
    else:
        text.append("\n" + printable(found.item))
    return text


class DetailScreen(ModalScreen[str | None]):
    """Escape or Enter closes it; the arrow keys go to the next result."""

    PAGE = "detail"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "leave", "Close"),
        Binding("right,down,n", "leave('next')", "Next"),
        Binding("left,up,p", "leave('previous')", "Previous"),
    ]

    def __init__(self, found: Found, *, image: bool = True) -> None:
        super().__init__()
        self._found, self._image = found, image

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog large") as dialog:
            dialog.border_title = f"Result {self._found.rank:,}"
            dialog.border_subtitle = "esc closes · ← → previous, next"
            yield Detail()

    def on_mount(self) -> None:
        self.query_one(Detail).show(self._found, image=self._image)

    def action_leave(self, where: str | None = None) -> None:
        self.dismiss(where)
