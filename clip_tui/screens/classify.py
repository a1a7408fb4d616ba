"""The Classify screen: zero-shot classification of an image with typed classes and templates."""

from collections.abc import Sequence
from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Input, Static

from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.commands import near
from clip_tui.encoder import Answer
from clip_tui.numbers import percent
from clip_tui.screens.query_page import QueryPage
from clip_tui.widgets.bars import Bar, Bars
from clip_tui.widgets.image_view import ImageView

CLASSES_OFFERED = 24  # captions that are offered where the run has no classes
TEMPLATE = "a photo of a {}"


class ClassifyScreen(QueryPage):
    """n and p go through the validation images; Enter in a field classifies again."""

    PAGE = "classify"
    BINDINGS = bindings("classify")

    def __init__(self) -> None:
        super().__init__()
        self._index = 0

    def body(self) -> ComposeResult:
        for name, label, placeholder in (
            ("classes", "classes", "separated by commas: cat, dog, a red circle"),
            ("templates", "templates", f"separated by |, averaged: {TEMPLATE}"),
            ("image", "image", "path of an image; n and p go through the validation images"),
        ):
            with Horizontal(classes="query-line"):
                yield Static(label, markup=False, classes="query-label")
                yield Input(id=name, placeholder=placeholder, compact=True)
        yield from self.sources()
        with Horizontal(id="classified"):
            yield ImageView(id="shown-image")
            with VerticalScroll():
                yield Static("", markup=False, id="truth")
                yield Bars(id="probabilities")

    def gallery_came(self) -> None:
        """Offer the run's own classes; they are whole captions, which need no template."""
        record = self.snapshot.record if self.snapshot else None
        known = (record.data.classes if record else None) or []
        offered = known or [caption for caption in self.gallery.captions if "," not in caption][:CLASSES_OFFERED]
        self.query_one("#classes", Input).value = ", ".join(printable(name) for name in offered)
        self.query_one("#templates", Input).value = "{}" if offered else ""
        self._index = 0
        self._show_image(ask=False)

    def _show_image(self, *, ask: bool) -> None:
        if not self.gallery.images:
            return
        image = self.gallery.images[self._index % len(self.gallery.images)]
        self.query_one("#image", Input).value = near(Path(image))
        self.query_one("#shown-image", ImageView).show(Path(image))
        self.query_one("#truth", Static).update(self._truth(image))
        self.query_one("#probabilities", Bars).show((), "Enter classifies; n goes to the next image")
        if ask:
            self.classify()

    def _truth(self, image: str) -> str:
        captions = [printable(caption) for caption in self.gallery.captions_of.get(image, [])]
        return f"{printable(Path(image).name)}: {'; '.join(captions)}" if captions else printable(Path(image).name)

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.set_focus(None)
        self.classify()

    def classify(self) -> None:
        """Classify the image of the field."""
        classes = split(self.query_one("#classes", Input).value, ",")
        templates = split(self.query_one("#templates", Input).value, "|") or [TEMPLATE]
        image = self.query_one("#image", Input).value.strip()
        wrong = next((template for template in templates if "{}" not in template), None)
        if len(classes) < 2 or not image:
            self.clip.say(
                "Type at least two classes, separated by commas, and the path of an image.", severity="warning"
            )
        elif wrong is not None:
            self.clip.say(f"The template {wrong!r} needs a {{}} for the class.", severity="warning")
        else:
            path = self.gallery.find(image)
            self.query_one("#shown-image", ImageView).show(Path(path))
            self.query_one("#truth", Static).update(self._truth(path))
            self.ask({"op": "classification", "image": path, "classes": classes, "templates": templates})

    def answer_came(self, answer: Answer) -> None:
        image = str(self.query_sent["image"]) if self.query_sent else ""
        ranked = zip(answer.result.get("classes", []), answer.result.get("probabilities", []), strict=False)
        bars = [Bar(n, p, percent(p), right=self.gallery.is_right(image, n)) for n, p in ranked]
        self.query_one("#probabilities", Bars).show(bars)

    # ------------------------------------------------------------ actions

    def action_classes(self) -> None:
        self.query_one("#classes", Input).focus()

    def action_next(self) -> None:
        self._index += 1
        self._show_image(ask=True)

    def action_previous(self) -> None:
        self._index -= 1
        self._show_image(ask=True)


def split(typed: str, by: str) -> Sequence[str]:
    """The distinct parts that are not empty."""
    return list(dict.fromkeys(part.strip() for part in typed.split(by) if part.strip()))
