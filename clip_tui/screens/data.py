"""The pairs of the run: how many, which captions, and the image of the one under the cursor."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from clip_core.errors import ClipError
from clip_core.text import normalise_caption, printable
from clip_tui.actions import bindings
from clip_tui.gallery import read_pairs_file
from clip_tui.numbers import number
from clip_tui.screens.page import Page
from clip_tui.watcher import Snapshot
from clip_tui.widgets.facts import Fact, Facts
from clip_tui.widgets.image_view import ImageView

ROWS_SHOWN = 2000
Pairs = Sequence[tuple[str, str]]


class DataScreen(Page):
    """t changes between training and validation pairs; / searches the captions."""

    PAGE = "data"
    BINDINGS = bindings("data")

    def __init__(self) -> None:
        super().__init__()
        self._run: Path | None = None
        self._pairs: dict[str, Pairs] = {"held out": (), "training": ()}
        self._part = "held out"
        self._shown: Pairs = ()

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
        self.query_one("#counts", Facts).show(counts(snapshot.config or {}, self._pairs["held out"]))
        if snapshot.path != self._run or not self._pairs["held out"]:
            self._run = snapshot.path
            self._load(snapshot)

    @work(name="pairs", group="pairs", exclusive=True)
    async def _load(self, snapshot: Snapshot) -> None:
        pairs = await asyncio.to_thread(read_parts, snapshot.path, snapshot.config or {})
        if not self.closing and (pairs != self._pairs or not self._shown):
            self._pairs = pairs
            self.query_one("#counts", Facts).show(counts(snapshot.config or {}, pairs["held out"]))
            self._show_pairs()

    def _show_pairs(self) -> None:
        words = normalise_caption(self.query_one("#search", Input).value).split()
        pairs = self._pairs[self._part]
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

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, message: OptionList.OptionHighlighted) -> None:
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
        self._part = "training" if self._part == "held out" else "held out"
        self._show_pairs()


def read_parts(run: Path, config: Mapping[str, Any]) -> dict[str, Pairs]:
    """The validation pairs, and those of the pair list whose image is not held out."""
    validation = read_pairs_file(run / "val_pairs.json")
    data = config.get("config", {}).get("data", {}) if isinstance(config.get("config"), dict) else {}
    kept = {image for image, _ in validation}
    every = _read_data(data) if validation and isinstance(data, dict) else []
    folders: dict[Path, Path] = {}  # resolving each folder once is enough, and much faster
    kept |= {_resolved(image, folders) for image in kept}
    training = [pair for pair in every if pair[0] not in kept and _resolved(pair[0], folders) not in kept]
    return {"held out": validation, "training": training}


def _read_data(values: Mapping[str, Any]) -> Pairs:
    """The pairs that a run's stored settings name, as its trainer read them; none where they cannot be read now."""
    from clip_core.config import parse_config  # not needed for the first frame
    from clip_core.data.formats.detect import read_data
    from clip_core.data.formats.source import ReadOptions

    try:
        config = parse_config({"data": dict(values)}).data
        pairs = read_data(config.data_file, ReadOptions.of(config)).pairs if config.data_file else []
    except ClipError:
        return []
    return [(str(pair.image), pair.caption) for pair in pairs if pair.problem is None]


def _resolved(image: str, folders: dict[Path, Path]) -> str:
    path = Path(image)
    if path.parent not in folders:
        folders[path.parent] = path.parent.resolve()
    return str(folders[path.parent] / path.name)


def counts(config: Mapping[str, Any], validation: Pairs) -> list[Fact]:
    """How many pairs and images there are, and the captions that are said most."""
    data = config.get("data")
    data = data if isinstance(data, dict) else {}
    classes = data.get("classes")
    facts: list[Fact] = [
        (name, f"{number(data.get(f'{part}_pairs')):>7} of {number(data.get(f'{part}_images'))} images")
        for part, name in (("train", "training"), ("val", "held out"))
    ]
    if isinstance(classes, list):
        facts.append(("classes", f"{len(classes):>7}"))
    said = Counter(normalise_caption(caption) for _, caption in validation)
    facts.append(("captions", f"{len(said):>7} distinct, held out"))
    return facts
