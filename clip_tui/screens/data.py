"""The Data screen: the training and validation pairs of the run, and the findings of `clip-data check`."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from clip_core.run.records import DataFacts
from clip_core.text import normalise_caption, printable
from clip_tui.actions import bindings
from clip_tui.gallery import Pair, Part, Parts, read_parts
from clip_tui.numbers import number
from clip_tui.screens.findings import FindingsPage, FoundPair
from clip_tui.watcher import Snapshot
from clip_tui.widgets.facts import Fact, Facts
from clip_tui.widgets.image_view import ImageView
from clip_tui.widgets.keys import Options

ROWS_SHOWN = 2000


class DataScreen(FindingsPage):
    """t switches between training and validation pairs, v to the findings; / searches the captions."""

    PAGE = "data"
    BINDINGS = bindings("data")

    def __init__(self) -> None:
        super().__init__()
        self._run: Path | None = None
        self._parts = Parts()
        self._part: Part = "validation"
        self._shown: Sequence[Pair] = ()

    def body(self) -> ComposeResult:
        with Horizontal(classes="query-line"):
            yield Static("", markup=False, id="part")
            yield Input(id="search", placeholder="words in the caption (/ to type)", compact=True)
        yield Static("", markup=False, id="data-note")
        yield Static("", markup=False, id="check-line")
        with Horizontal(id="pairs"):
            yield Options(id="captions", markup=False, compact=True)
            with Vertical(id="pair"):
                yield ImageView(id="image")
                yield Static("", markup=False, id="pair-caption")
                yield Facts(id="counts")
        yield from self.findings_body()

    @property
    def _shows_findings(self) -> bool:
        return self.has_class("-findings")

    def run_came(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        self.follow_findings(snapshot)
        record = snapshot.record
        self.query_one("#counts", Facts).show(counts(record.data if record else None, self._parts.validation))
        if snapshot.path != self._run or not self._parts.validation:
            self._run = snapshot.path
            self._load(snapshot)

    @work(name="pairs", group="pairs", exclusive=True)
    async def _load(self, snapshot: Snapshot) -> None:
        record = snapshot.record
        parts = await asyncio.to_thread(read_parts, snapshot.path, record.config.data if record else None)
        if not self.closing and (parts != self._parts or not self._shown):
            self._parts = parts
            self.query_one("#counts", Facts).show(counts(record.data if record else None, parts.validation))
            self._show_pairs()

    def _show_pairs(self) -> None:
        words = normalise_caption(self.query_one("#search", Input).value).split()
        pairs = self._parts.of(self._part)
        found = [pair for pair in pairs if all(word in normalise_caption(pair[1]) for word in words)]
        self._shown = found[:ROWS_SHOWN]
        title = f"{self._part} {len(found):,}" + (f" of {len(pairs):,}" if words else "")
        title += f", first {ROWS_SHOWN:,} listed" if len(found) > ROWS_SHOWN else ""
        if self._part == "training" and not pairs and self._parts.note:
            title = "training pairs"
        self.query_one("#part", Static).update(title)
        self._show_note()
        captions = self.query_one("#captions", OptionList)
        captions.clear_options()
        captions.add_options(Option(Text(printable(caption, 200), no_wrap=True)) for _, caption in self._shown)
        if self._shown:
            captions.highlighted = 0
            if not isinstance(self.focused, Input) and not self._shows_findings:
                captions.focus()
        else:
            self.query_one("#image", ImageView).show(None)
            self.query_one("#pair-caption", Static).update("")

    def _show_note(self) -> None:
        """Why there are no pairs to show."""
        note = self._parts.note if not self._parts.of(self._part) else None
        line = self.query_one("#data-note", Static)
        line.update(printable(note or ""))
        line.display = bool(note)

    def copied(self) -> str | None:
        if self._shows_findings:
            return self.copied_finding()
        return "\t".join(self._selected) if self._selected else None

    @on(OptionList.OptionHighlighted, "#captions")
    def _highlighted(self, message: OptionList.OptionHighlighted) -> None:
        if message.option_index >= len(self._shown):
            return  # the list was replaced while the message was on its way
        image, caption = self._shown[message.option_index]
        self.query_one("#image", ImageView).show(Path(image))
        self.query_one("#pair-caption", Static).update(
            Text.assemble((printable(caption), "bold"), "\n", (printable(Path(image).name), "dim"))
        )

    @on(Input.Changed, "#search")
    def _search_changed(self) -> None:
        self._show_pairs()

    @on(Input.Submitted, "#search")
    def _search_done(self) -> None:
        self.set_focus(self.query_one("#captions", OptionList))

    def action_search(self) -> None:
        self.set_focus(self.query_one("#search", Input))

    def action_view(self) -> None:
        """Pairs, or findings."""
        self.set_class(not self._shows_findings, "-findings")
        self.set_focus(self.query_one("#kinds" if self._shows_findings else "#captions"))
        self.call_after_refresh(self._show_pair)

    def action_flag(self) -> None:
        if self._shows_findings:
            self.flag_selected()
        elif (pair := self._selected) is not None:
            self.toggle_flag(pair)

    def action_flag_kind(self) -> None:
        if self._shows_findings:
            self.flag_kind()

    def action_large(self) -> None:
        if self._shows_findings:
            self.open_finding()
        elif (pair := self._selected) is not None:
            self.app.push_screen(FoundPair(*pair, ""))

    @on(OptionList.OptionSelected)
    def _entered(self) -> None:
        self.action_large()

    @property
    def _selected(self) -> Pair | None:
        index = self.query_one("#captions", OptionList).highlighted
        return self._shown[index] if index is not None and index < len(self._shown) else None

    def action_part(self) -> None:
        self._part = "training" if self._part == "validation" else "validation"
        self._show_pairs()


def counts(data: DataFacts | None, validation: Sequence[Pair]) -> list[Fact]:
    """How many pairs, images, classes and distinct captions there are."""
    facts: list[Fact] = []
    if data is not None:
        images = "" if data.train_images is None else f", {number(data.train_images)} images"
        facts.append(("training", f"{number(data.train_pairs)} pairs{images}"))
        facts.append(("validation", f"{number(data.val_pairs)} pairs, {number(data.val_images)} images"))
        if data.classes is not None:
            facts.append(("classes", number(len(data.classes))))
    if validation:
        distinct = len({normalise_caption(caption) for _, caption in validation})
        facts.append(("captions", f"{number(distinct)} distinct in the validation set"))
    return facts
