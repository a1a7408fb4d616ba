"""The Data screen: the training and validation pairs of the run, with the image of the selected one."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from clip_core.config import DataConfig
from clip_core.errors import ClipError
from clip_core.run.records import DataFacts
from clip_core.text import normalise_caption, printable
from clip_tui.actions import bindings
from clip_tui.gallery import Pair, read_validation
from clip_tui.numbers import number
from clip_tui.screens.page import Page
from clip_tui.watcher import Snapshot
from clip_tui.widgets.facts import Fact, Facts
from clip_tui.widgets.image_view import ImageView

ROWS_SHOWN = 2000
Part = Literal["training", "validation"]
Parts = Mapping[Part, Sequence[Pair]]


class DataScreen(Page):
    """t switches between training and validation pairs; / searches the captions."""

    PAGE = "data"
    BINDINGS = bindings("data")

    def __init__(self) -> None:
        super().__init__()
        self._run: Path | None = None
        self._parts: Parts = {"training": (), "validation": ()}
        self._part: Part = "validation"
        self._shown: Sequence[Pair] = ()

    def body(self) -> ComposeResult:
        with Horizontal(classes="query-line"):
            yield Static("", markup=False, id="part")
            yield Input(id="search", placeholder="words in the caption (/ to type)", compact=True)
        with Horizontal(id="pairs"):
            yield OptionList(id="captions", markup=False, compact=True)
            with Vertical(id="pair"):
                yield ImageView(id="image")
                yield Static("", markup=False, id="pair-caption")
                yield Facts(id="counts")

    def run_came(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        record = snapshot.record
        self.query_one("#counts", Facts).show(counts(record.data if record else None, self._parts["validation"]))
        if snapshot.path != self._run or not self._parts["validation"]:
            self._run = snapshot.path
            self._load(snapshot)

    @work(name="pairs", group="pairs", exclusive=True)
    async def _load(self, snapshot: Snapshot) -> None:
        record = snapshot.record
        parts = await asyncio.to_thread(read_parts, snapshot.path, record.config.data if record else None)
        if not self.closing and (parts != self._parts or not self._shown):
            self._parts = parts
            self.query_one("#counts", Facts).show(counts(record.data if record else None, parts["validation"]))
            self._show_pairs()

    def _show_pairs(self) -> None:
        words = normalise_caption(self.query_one("#search", Input).value).split()
        pairs = self._parts[self._part]
        found = [pair for pair in pairs if all(word in normalise_caption(pair[1]) for word in words)]
        self._shown = found[:ROWS_SHOWN]
        title = f"{self._part} {len(found):,}" + (f" of {len(pairs):,}" if words else "")
        self.query_one("#part", Static).update(title + (f", first {ROWS_SHOWN:,}" if len(found) > ROWS_SHOWN else ""))
        captions = self.query_one("#captions", OptionList)
        captions.clear_options()
        captions.add_options(Option(Text(printable(caption, 200), no_wrap=True)) for _, caption in self._shown)
        if self._shown:
            captions.highlighted = 0
            if not isinstance(self.focused, Input):
                captions.focus()
        else:
            self.query_one("#image", ImageView).show(None)
            self.query_one("#pair-caption", Static).update("")

    @on(OptionList.OptionHighlighted)
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
        self.query_one("#captions", OptionList).focus()

    def action_search(self) -> None:
        self.query_one("#search", Input).focus()

    def action_part(self) -> None:
        self._part = "training" if self._part == "validation" else "validation"
        self._show_pairs()


def read_parts(run: Path, data: DataConfig | None) -> Parts:
    """The validation pairs of a run, and the pairs of its list whose image is not among them."""
    validation = read_validation(run)
    every = _read_list(data) if validation and data else []
    excluded = {image for image, _ in validation}
    folders: dict[Path, Path] = {}  # resolving each folder once is enough, and much faster
    excluded |= {_resolved(image, folders) for image in excluded}
    training = [pair for pair in every if pair[0] not in excluded and _resolved(pair[0], folders) not in excluded]
    return {"training": training, "validation": validation}


def _read_list(data: DataConfig) -> Sequence[Pair]:
    """The valid pairs of the run's data; none where it cannot be read now."""
    from clip_core.data.formats.detect import read_data  # not needed for the first frame
    from clip_core.data.formats.source import ReadOptions
    from clip_core.data.splits import split_training

    if data.data_file is None:
        return []
    try:
        reading = read_data(data.data_file, ReadOptions.of(data))
    except ClipError:
        return []
    pairs = split_training(reading.pairs, reading.columns, val_file=data.val_file is not None).train
    return [(str(pair.image), pair.caption) for pair in pairs if pair.problem is None]


def _resolved(image: str, folders: dict[Path, Path]) -> str:
    path = Path(image)
    if path.parent not in folders:
        folders[path.parent] = path.parent.resolve()
    return str(folders[path.parent] / path.name)


def counts(data: DataFacts | None, validation: Sequence[Pair]) -> list[Fact]:
    """How many pairs, images, classes and distinct captions there are."""
    facts: list[Fact] = []
    if data is not None:
        facts.append(("training", f"{number(data.train_pairs)} pairs, {number(data.train_images)} images"))
        facts.append(("validation", f"{number(data.val_pairs)} pairs, {number(data.val_images)} images"))
        if data.classes is not None:
            facts.append(("classes", number(len(data.classes))))
    if validation:
        distinct = len({normalise_caption(caption) for _, caption in validation})
        facts.append(("captions", f"{number(distinct)} distinct in the validation set"))
    return facts
