"""The Retrieve screen: text to image and image to text retrieval over the validation pairs of the run."""

import random
from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Input, Static

from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.commands import near
from clip_tui.encoder import Answer
from clip_tui.numbers import number
from clip_tui.screens.query_page import QueryPage
from clip_tui.widgets.bars import Bar, Bars
from clip_tui.widgets.image_view import ImageView
from clip_tui.widgets.results import SLOTS, Found, Results

TEXTS_SHOWN = 20


class RetrieveScreen(QueryPage):
    """One field for the query, a text or the path of an image; t switches the direction."""

    PAGE = "retrieve"
    BINDINGS = bindings("retrieve")

    def __init__(self) -> None:
        super().__init__()
        self.from_text = True
        self._random = random.Random(0)

    def body(self) -> ComposeResult:
        with Horizontal(classes="query-line"):
            yield Static("", markup=False, id="direction")
            yield Input(id="query", compact=True)
        yield from self.sources()
        yield Static(
            "x  a random caption or image of the validation set\n/  your own query",
            markup=False,
            id="nothing-asked",
        )
        yield Results(id="images")
        with Horizontal(id="texts"):
            yield ImageView(id="query-image")
            with VerticalScroll():
                yield Bars(id="found-texts")

    def on_mount(self) -> None:
        super().on_mount()
        self._show_direction()

    def gallery_came(self) -> None:
        self.query_one("#images", Results).show(())
        self.query_one("#found-texts", Bars).show((), "")
        self._show_direction()

    def _show_direction(self) -> None:
        answered = self.query_sent is not None
        self.query_one("#nothing-asked").display = not answered
        self.query_one("#images").display = answered and self.from_text
        self.query_one("#texts").display = answered and not self.from_text
        self.query_one("#direction", Static).update("text → image" if self.from_text else "image → text")
        field = self.query_one("#query", Input)
        if self.from_text:
            field.placeholder = f"text to match against {number(len(self.gallery.images))} images (/ to type)"
        else:
            field.placeholder = f"path of an image to match against {number(len(self.gallery.captions))} captions"

    @on(Input.Submitted, "#query")
    def _submitted(self) -> None:
        asked = self.query_one("#query", Input).value.strip()
        if not asked:
            return
        self.set_focus(None)
        if self.from_text:
            self.ask({"op": "retrieval", "text": asked, "images": list(self.gallery.images), "top_k": SLOTS})
        else:
            image = self.gallery.find(asked)
            self.query_one("#query-image", ImageView).show(Path(image))
            texts = list(self.gallery.captions)
            self.ask({"op": "text_retrieval", "image": image, "texts": texts, "top_k": TEXTS_SHOWN})

    def answer_came(self, answer: Answer) -> None:
        self._show_direction()
        scores = answer.result.get("similarities", [])
        if answer.result.get("images") is not None:
            asked = str(self.query_sent["text"]) if self.query_sent else ""
            images = zip(answer.result["images"], scores, strict=False)
            self.query_one("#images", Results).show([self._found(image, score, asked) for image, score in images])
        else:
            image = str(self.query_sent["image"]) if self.query_sent else ""
            texts = zip(answer.result.get("texts", []), scores, strict=False)
            self.query_one("#found-texts", Bars).show(
                [Bar(t, max(0.0, s), f"{s:.3f}", right=self.gallery.is_right(image, t)) for t, s in texts]
            )

    def _found(self, image: str, score: float, asked: str) -> Found:
        captions = self.gallery.captions_of.get(image, [])
        return Found(Path(image), score, "; ".join(captions), right=self.gallery.is_right(image, asked))

    # ------------------------------------------------------------ actions

    def action_query(self) -> None:
        self.query_one("#query", Input).focus()

    def action_turn(self) -> None:
        self.from_text = not self.from_text
        self.query_sent, self.answers = None, {}
        self.query_one("#query", Input).value = ""
        self._show_direction()
        self.show_sources()

    def action_random(self) -> None:
        known = self.gallery.captions if self.from_text else self.gallery.images
        if not known:
            self.clip.say("The run has no validation pairs yet.", severity="warning")
            return
        choice = self._random.choice(known)
        self.query_one("#query", Input).value = printable(choice) if self.from_text else near(Path(choice))
        self._submitted()
