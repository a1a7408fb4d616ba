"""The Classify screen: zero-shot classification of one image or a whole set, with typed classes and templates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.timer import Timer
from textual.widgets import DataTable, Input, OptionList, Static
from textual.widgets.option_list import Option

from clip_core.text import normalise_caption, printable
from clip_tui.actions import bindings
from clip_tui.commands import near
from clip_tui.encoder import Model
from clip_tui.found import column_widths
from clip_tui.numbers import percent
from clip_tui.outcomes import ORDERS, ClassRow, Order, Outcome, Outcomes, labels_of, outcomes_of
from clip_tui.screens.query_page import QueryPage
from clip_tui.theme import GREEN, RED
from clip_tui.widgets.bars import Bar, Bars
from clip_tui.widgets.confusion import ConfusionMap
from clip_tui.widgets.image_view import ImageView
from clip_tui.widgets.keys import Options, Rows

CLASSES_OFFERED = 24  # captions that are offered where the run has no classes
TEMPLATE = "a photo of a {}"
PAUSE_SECONDS = 0.4  # without a key, after which edited classes are classified again
IMAGES_SHOWN = 1000
COLUMNS = ("class", "images", "recall", "precision", "taken for")
VIEWS = ("per class", "confusion", "images")


class ClassifyScreen(QueryPage):
    """Enter classifies the image; s classifies the whole gallery; edited classes are classified again."""

    PAGE = "classify"
    BINDINGS = bindings("classify")

    def __init__(self) -> None:
        super().__init__()
        self._index = 0
        self._offered_classes = ""
        self.whole_set = False
        self.order: Order = "recall"
        self.outcomes = Outcomes()
        self._listed: Sequence[Outcome] = ()
        self._view = 0
        self._of_a_part = False  # the images that are listed are those of a class or of a cell
        self._waiting: Timer | None = None

    def body(self) -> ComposeResult:
        for name, label, placeholder in (
            ("classes", "classes", "separated by commas: cat, dog, a red circle"),
            ("templates", "templates", f"separated by |, averaged: {TEMPLATE}"),
            ("image", "image", "path of an image; n and p go through the gallery"),
        ):
            with Horizontal(classes="query-line"):
                yield Static(label, markup=False, classes="query-label")
                yield Input(id=name, placeholder=placeholder, compact=True)
        yield from self.sources()
        with Horizontal(id="classified"):
            yield ImageView(id="shown-image")
            with VerticalScroll(id="ranked"):
                yield Static("", markup=False, id="truth")
                yield Bars(id="probabilities")
        with Vertical(id="set"):
            yield Static("", markup=False, id="set-summary")
            with Horizontal(id="set-body"):
                yield Rows(id="per-class", cursor_type="row")
                with Vertical(id="set-right"):
                    yield ConfusionMap(id="confusion")
                    with Horizontal(id="set-images"):
                        yield Options(id="wrong", markup=False, compact=True)
                        yield ImageView(id="wrong-image")

    def on_mount(self) -> None:
        super().on_mount()
        table = self.query_one("#per-class", DataTable)
        table.border_title, self.query_one("#confusion").border_title = "Per class", "Confusion"
        self._show_mode()

    def on_resize(self) -> None:
        super().on_resize()
        self.call_after_refresh(self._show_mode)
        self.call_after_refresh(self._fill_classes)

    def _show_mode(self) -> None:
        self.query_one("#classified").display = not self.whole_set
        self.query_one("#set").display = self.whole_set
        wide = "-wide" in self.classes
        self.query_one("#per-class").display = wide or self._view == 0
        self.query_one("#set-right").display = wide or self._view > 0
        self.query_one("#confusion").display = wide or self._view == 1
        self.query_one("#set-images").display = wide or self._view == 2

    def gallery_came(self) -> None:
        """Offer the run's own classes; they are whole captions, which need no template."""
        record = self.snapshot.record if self.snapshot else None
        known = (record.data.classes if record else None) or []
        offered = known or [caption for caption in self.gallery.captions if "," not in caption][:CLASSES_OFFERED]
        classes = ", ".join(printable(name) for name in offered)
        field = self.query_one("#classes", Input)
        if field.value.strip() in ("", self._offered_classes):  # else they were typed, and stay
            with self.prevent(Input.Changed):
                field.value = self._offered_classes = classes
                self.query_one("#templates", Input).value = "{}" if offered else ""
        self._index = 0
        self.outcomes = Outcomes()
        self.query_one("#truth", Static).update(Text(self.gallery.note or "", "dim"))
        if self.query_sent is None:
            self.query_one("#set-summary", Static).update("")
        self._show_image(ask=False)

    def still_reading(self) -> None:
        self.query_one("#truth", Static).update(Text(self.reading, "dim"))
        if self.query_sent is None:
            self.query_one("#set-summary", Static).update(Text(self.reading, "dim"))

    def _show_image(self, *, ask: bool) -> None:
        if not self.gallery.images:  # what is shown may be of another gallery
            with self.prevent(Input.Changed):
                self.query_one("#image", Input).value = ""
            self.query_one("#shown-image", ImageView).show(None)
            self.query_one("#probabilities", Bars).show(())
            return
        image = self.gallery.images[self._index % len(self.gallery.images)]
        with self.prevent(Input.Changed):
            self.query_one("#image", Input).value = near(Path(image))
        self.query_one("#shown-image", ImageView).show(Path(image))
        self.query_one("#truth", Static).update(self._truth(image))
        self.query_one("#probabilities", Bars).show((), "enter: this image; s: the whole gallery")
        if ask:
            self.classify()

    def _truth(self, image: str) -> str:
        captions = [printable(caption) for caption in self.gallery.captions_of.get(image, [])]
        return f"{printable(Path(image).name)}: {'; '.join(captions)}" if captions else printable(Path(image).name)

    # ------------------------------------------------------------ asking

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self._stop_waiting()
        self.set_focus(None)
        self.classify()

    @on(Input.Changed)
    def _edited(self) -> None:
        """Once something was classified, an edit classifies again after a pause."""
        self._stop_waiting()
        if self.query_sent is not None and self.is_current:
            self._waiting = self.set_timer(PAUSE_SECONDS, lambda: self.classify(quiet=True))

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None

    def _typed(self) -> tuple[list[str], list[str]]:
        classes = split(self.query_one("#classes", Input).value, ",")
        templates = split(self.query_one("#templates", Input).value, "|") or [TEMPLATE]
        return list(classes), list(templates)

    def classify(self, *, quiet: bool = False) -> None:
        """Classify the image of the field, or the whole gallery.

        Args:
            quiet: say nothing about what is missing, as while it is typed.
        """
        classes, templates = self._typed()
        image = self.query_one("#image", Input).value.strip()
        wrong = next((template for template in templates if "{}" not in template), None)
        problem = None
        if len(classes) < 2:
            problem = "Type at least two classes, separated by commas, and the path of an image."
        elif wrong is not None:
            problem = f"The template {wrong!r} needs a {{}} for the class."
        elif self.whole_set and not self.gallery.images:
            problem = self.missing("The gallery has no images yet; g chooses another.")
        elif not self.whole_set and not image:
            problem = "Type at least two classes, separated by commas, and the path of an image."
        if problem is not None:
            if not quiet:
                self.clip.say(problem, severity="warning")
        elif self.whole_set:
            images = list(self.gallery.images)
            self.ask({"op": "classification_set", "images": images, "classes": classes, "templates": templates})
        else:
            path = self.gallery.find(image)
            self.query_one("#shown-image", ImageView).show(Path(path))
            self.query_one("#truth", Static).update(self._truth(path))
            self.ask({"op": "classification", "image": path, "classes": classes, "templates": templates})

    def answers_changed(self, model: Model) -> None:
        first = self.models()[0]
        query = self.query_sent
        if query is None or (first in self.answers and model != first and not self.whole_set):
            return
        answer = self.answers.get(first)
        if answer is None:
            return
        if query["op"] == "classification_set":
            labels = labels_of(self.gallery, query["classes"], query["templates"])
            self.outcomes = outcomes_of(answer.result, query["classes"], labels)
            self._show_set()
        else:
            self._show_one(answer.result, query)

    def _show_one(self, result: dict[str, Any], query: dict[str, Any]) -> None:
        image = str(query["image"])
        right = {normalise_caption(caption) for caption in self.gallery.captions_of.get(image, ())}
        ranked = zip(result.get("classes", []), result.get("probabilities", []), strict=False)
        bars = [Bar(n, p, percent(p), right=_names(n, query["templates"], right)) for n, p in ranked]
        self.query_one("#probabilities", Bars).show(bars)
        ranked_list = self.query_one("#ranked", VerticalScroll)
        if not isinstance(self.focused, Input):
            ranked_list.focus()
        ranked_list.border_title = f"{len(bars)} classes"

    # ------------------------------------------------------------ the whole set

    def _show_set(self) -> None:
        outcomes = self.outcomes
        summary = Text(no_wrap=True, overflow="ellipsis")
        summary.append(f"{len(outcomes.every):,} images of the {self.place.label}")
        if outcomes.labelled:
            share = outcomes.right / outcomes.labelled
            summary.append(f" · accuracy {percent(share)} ({outcomes.right:,} of {outcomes.labelled:,})", "bold")
        else:
            summary.append(" · no caption is one of the classes, so nothing is counted as right or wrong")
        if 0 < outcomes.labelled < len(outcomes.every):
            summary.append(f" · {len(outcomes.every) - outcomes.labelled:,} without a class")
        summary.append_text(self._second_accuracy())
        self.query_one("#set-summary", Static).update(summary)
        self._fill_classes()
        self.query_one("#confusion", ConfusionMap).show(outcomes)
        self._list_all()
        if not isinstance(self.focused, Input):
            self.set_focus(self.query_one("#per-class"))

    def _second_accuracy(self) -> Text:
        models = self.models()
        if len(models) < 2 or models[1] not in self.answers or self.query_sent is None:
            return Text()
        labels = labels_of(self.gallery, self.query_sent["classes"], self.query_sent["templates"])
        other = outcomes_of(self.answers[models[1]].result, self.query_sent["classes"], labels)
        mine = {outcome.image: outcome.predicted for outcome in self.outcomes.every}
        same = sum(mine.get(outcome.image) == outcome.predicted for outcome in other.every)
        share = f", accuracy {percent(other.right / other.labelled)}" if other.labelled else ""
        return Text(f" · {models[1].name}: same class for {same:,} of {len(other.every):,}{share}", GREEN)

    def _fill_classes(self) -> None:
        table = self.query_one("#per-class", DataTable)
        table.clear(columns=True)
        table.border_subtitle = f"by {self.order} · o sorts"
        rows = {str(row.index): self._row(row) for row in self.outcomes.rows(self.order)}
        room = (self.size.width - 2) // (2 if "-wide" in self.classes else 1) - 2
        widths = column_widths(COLUMNS, list(rows.values()), room, cut=("taken for", "class"))
        for name, width in zip(COLUMNS, widths, strict=True):
            table.add_column(name, key=name, width=width)
        for key, cells in rows.items():
            table.add_row(*cells, key=key)

    def _row(self, row: ClassRow) -> list[Text]:
        return [
            Text(printable(self.outcomes.names[row.index], 40), "bold", no_wrap=True, overflow="ellipsis"),
            Text(f"{row.count:,}", justify="right"),
            Text(percent(row.recall), RED if (row.recall or 0) < 0.5 and row.count else "", justify="right"),
            Text(percent(row.precision), justify="right"),
            Text(self._confused(row.index), "dim", no_wrap=True, overflow="ellipsis"),
        ]

    def _confused(self, index: int) -> str:
        """The class that this one is most often taken for."""
        wrong = [(n, guess) for (true, guess), n in self.outcomes.matrix.items() if true == index != guess]
        if not wrong:
            return ""
        count, guess = max(wrong)
        return f"{count} {printable(self.outcomes.names[guess], 40)}"

    def _list_all(self) -> None:
        self._list(list(self.outcomes.every), "wrong ones first", part=False)

    def _list(self, outcomes: Sequence[Outcome], title: str, *, part: bool = True) -> None:
        """List images, wrong ones first; `part`: Escape lists all again."""
        self._of_a_part = part
        self._listed = outcomes[:IMAGES_SHOWN]
        listed = self.query_one("#wrong", OptionList)
        listed.clear_options()
        listed.add_options(Option(self._line(outcome)) for outcome in self._listed)
        of = f"first {len(self._listed):,} of {len(outcomes):,}" if len(outcomes) > IMAGES_SHOWN else f"{len(outcomes)}"
        listed.border_title = Text(f"{printable(title)}: {of}")  # as text, which is never markup
        listed.border_subtitle = "esc: all" if part else ""
        if self._listed:
            listed.highlighted = 0
        else:
            self.query_one("#wrong-image", ImageView).show(None)

    def _line(self, outcome: Outcome) -> Text:
        classes = self.outcomes.names
        sign, style = ("✗", RED) if outcome.wrong else ("✓", GREEN) if outcome.true is not None else ("·", "dim")
        line = Text(no_wrap=True, overflow="ellipsis").append(f"{sign} ", style)
        line.append(f"{percent(outcome.probability, 0):>4} ").append(printable(classes[outcome.predicted], 24), style)
        if outcome.wrong and outcome.true is not None:
            line.append(f" for {printable(classes[outcome.true], 24)}")
        return line.append(f"  {printable(Path(outcome.image).name)}", "dim")

    @on(OptionList.OptionHighlighted, "#wrong")
    def _image_chosen(self, message: OptionList.OptionHighlighted) -> None:
        if message.option_index < len(self._listed):
            self.query_one("#wrong-image", ImageView).show(Path(self._listed[message.option_index].image))

    @on(OptionList.OptionSelected, "#wrong")
    def _image_opened(self, message: OptionList.OptionSelected) -> None:
        """The probabilities of one image of the set."""
        image = self._listed[message.option_index].image
        if image in self.gallery.images:
            self._index = list(self.gallery.images).index(image)
        self.whole_set = False
        self._show_mode()
        self._show_image(ask=True)

    @on(DataTable.RowSelected, "#per-class")
    def _class_chosen(self, message: DataTable.RowSelected) -> None:
        index = int(message.row_key.value or 0)
        self._list(self.outcomes.of_class(index), self.outcomes.names[index])
        self._see_images()

    @on(ConfusionMap.Opened)
    def _cell_opened(self, message: ConfusionMap.Opened) -> None:
        names = self.outcomes.names
        title = f"{names[message.true]} → {names[message.predicted]}"
        self._list(self.outcomes.of_cell(message.true, message.predicted), title)
        self._see_images()

    def _see_images(self) -> None:
        self._view = 2
        self._show_mode()
        self.set_focus(self.query_one("#wrong"))

    def key_escape(self) -> None:
        if self.whole_set and self._of_a_part and not isinstance(self.focused, Input):
            self._list_all()
        else:
            super().key_escape()

    def copied(self) -> str | None:
        if self.whole_set:
            index = self.query_one("#wrong", OptionList).highlighted
            return self._listed[index].image if index is not None and index < len(self._listed) else None
        return "\n".join(f"{bar.value}\t{bar.name}" for bar in self.query_one("#probabilities", Bars).bars) or None

    # ------------------------------------------------------------ actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("next", "previous"):
            return not self.whole_set
        return self.whole_set if action in ("sort", "view") else True

    def action_classes(self) -> None:
        self.set_focus(self.query_one("#classes", Input))

    def action_classify(self) -> None:
        self.classify()

    def action_set(self) -> None:
        """Switch between one image and the whole gallery."""
        self.whole_set = not self.whole_set
        self._forget()
        self._show_mode()
        self.refresh_bindings()
        self.classify()

    def action_sort(self) -> None:
        self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
        self._fill_classes()

    def action_view(self) -> None:
        """Where there is no room for all three: per class, confusion, images."""
        self._view = (self._view + 1) % len(VIEWS)
        self._show_mode()
        self.set_focus(self.query_one(("#per-class", "#confusion", "#wrong")[self._view]))

    def action_next(self) -> None:
        self._index += 1
        self._show_image(ask=True)

    def action_previous(self) -> None:
        self._index -= 1
        self._show_image(ask=True)


def _names(name: str, templates: Sequence[str], captions: set[str]) -> bool:
    """Whether a caption is the class, or a template filled with it."""
    return any(normalise_caption(text) in captions for text in (name, *(t.replace("{}", name) for t in templates)))


def split(typed: str, by: str) -> Sequence[str]:
    """The distinct parts that are not empty."""
    return list(dict.fromkeys(part.strip() for part in typed.split(by) if part.strip()))
