"""The probe of an evaluation: every image against every caption, and one image with the captions nearest to it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Static

from clip_core.run.records import Probe
from clip_core.text import printable
from clip_tui.outcomes import without_shared_words
from clip_tui.theme import BLUE, GREEN, RED, YELLOW
from clip_tui.widgets.bars import Bar, Bars
from clip_tui.widgets.heat_map import HeatMap, Matrix
from clip_tui.widgets.image_view import ImageView

SLIDER = 10  # columns
_SPREAD = 0.1  # of cosines, at least, from the darkest to the lightest colour


class ProbePanel(Vertical):
    """The heat map of a probe, below a slider over all evaluations. Rows are images, columns captions."""

    class Scrubbed(Message):
        """Another evaluation was chosen with the mouse: so many further on."""

        def __init__(self, by: int) -> None:
            super().__init__()
            self.by = by

    _places = (0, 0)  # of the evaluation that is shown, among how many

    def compose(self) -> ComposeResult:
        yield Static("no evaluation yet", markup=False, id="scrubber")
        with Horizontal(id="heat"):
            yield Static("", markup=False, id="heat-names")
            yield HeatMap(id="heat-map")
            yield Static("", markup=False, id="heat-ranks")

    def show(self, probe: Probe | None, steps: Sequence[int], flagged: frozenset[tuple[str, str]]) -> None:
        """Show a probe.

        Args:
            steps: of all evaluations.
            flagged: images and captions of the pairs that are flagged as bad.
        """
        rows, heat = rows_of(probe), self.query_one("#heat")
        appears = bool(rows) and not heat.display
        heat.display = bool(rows)
        self._places = (steps.index(probe.step) if probe and probe.step in steps else len(steps) - 1, len(steps))
        self.query_one("#scrubber", Static).update(slider(probe.step if probe else None, steps), layout=False)
        if probe is None or not rows:
            return
        matrix = matrix_of(probe)
        low = float(matrix.min())
        self.query_one(HeatMap).show(matrix, range=(low, max(low + _SPREAD, float(matrix.max()))), diagonal=True)
        names, ranks = self.query_one("#heat-names", Static), self.query_one("#heat-ranks", Static)
        lines = self.query_one(HeatMap).lines  # one beside each line of the map, which may be several rows
        names.update(_lines([_names(probe, line) for line in lines]), layout=False)
        ranks.update(_lines([rank_text(probe, worst(probe, line, flagged), flagged) for line in lines]), layout=False)
        if appears:  # only once it is laid out is it known which rows its lines show
            self.call_after_refresh(self.show, probe, steps, flagged)

    @on(HeatMap.Chosen)
    def _let_pass(self) -> None:
        """The screen shows the pair."""

    def on_click(self, event: events.Click) -> None:
        """The arrows lead to the neighbours, the bar to the evaluation that it shows there."""
        if event.widget is not self.query_one("#scrubber"):
            return
        place, count = self._places
        along = event.x - 2  # of the bar, behind the left arrow
        if 0 <= along < SLIDER:
            self.post_message(self.Scrubbed(-(-(along + 1) * count // SLIDER) - 1 - place))
        else:
            self.post_message(self.Scrubbed(-1 if along < 0 else 1))


class PairPanel(Horizontal, can_focus=True):
    """An image of the probe with its nearest captions."""

    def compose(self) -> ComposeResult:
        yield ImageView()
        with Vertical():
            yield Static("", markup=False, classes="probe-caption")
            yield Bars()

    def show(self, probe: Probe | None, row: int, column: int) -> None:
        """Show the image of a row; the caption of another column is shown with its similarity."""
        image, line, bars = self.query_one(ImageView), self.query_one(".probe-caption", Static), self.query_one(Bars)
        rows = rows_of(probe)
        if probe is None or not rows:
            image.show(None)
            line.update("no evaluation yet", layout=False)
            self._show_bars(bars, [])
            return
        row, column = row % rows, column % rows
        path = Path(probe.images[row])
        image.show(path)
        line.update(cell_text(probe, row, column), layout=False)
        self._show_bars(bars, probe_bars(probe.captions, probe.image_to_text[row], probe.similarity[row], right=row))

    @staticmethod
    def _show_bars(bars: Bars, shown: list[Bar]) -> None:
        if tuple(shown) != tuple(bars.bars):
            bars.show(shown)


def rows_of(probe: Probe | None) -> int:
    """The images of a probe that have everything; a damaged file may have lists of different lengths."""
    if probe is None:
        return 0
    whole = min(len(probe.images), len(probe.captions), len(probe.image_to_text), len(probe.similarity))
    return next((row for row in range(whole) if len(probe.similarity[row]) < whole), whole)


def matrix_of(probe: Probe) -> Matrix:
    """The cosines, images in rows: shape (rows, rows)."""
    rows = rows_of(probe)
    return np.array([line[:rows] for line in probe.similarity[:rows]], dtype=np.float64)


def rank_of(probe: Probe, row: int) -> int:
    """The rank of an image's own caption, from 1, by its similarity."""
    own = probe.similarity[row][row]
    return 1 + sum(value > own for value in probe.similarity[row][: rows_of(probe)])


def rank_text(probe: Probe, row: int, flagged: frozenset[tuple[str, str]]) -> Text:
    if (probe.images[row], probe.captions[row]) in flagged:
        return Text("✗ bad", f"bold {RED}")
    rank = rank_of(probe, row)
    return Text("✓", GREEN) if rank == 1 else Text(f"rank {rank}", RED if rank > 3 else YELLOW)


def worst(probe: Probe, rows: range, flagged: frozenset[tuple[str, str]]) -> int:
    """Of rows that share a line, the one that matters most: a flagged one, else that of the largest rank."""
    return max(rows, key=lambda row: ((probe.images[row], probe.captions[row]) in flagged, rank_of(probe, row)))


def _names(probe: Probe, rows: range) -> Text:
    more = f" +{len(rows) - 1}" if len(rows) > 1 else ""
    return Text(printable(Path(probe.images[rows[0]]).name) + more, "dim")


def slider(step: int | None, steps: Sequence[int]) -> Text:
    """`◀ ━━━━╸───── ▶ step 714, 5 of 12`."""
    if not steps:
        return Text("no evaluation yet", "dim")
    if step is None:
        return Text(f"the probe of step {steps[-1]:,} cannot be read", "dim")
    place = steps.index(step) if step in steps else len(steps) - 1
    halves = round(2 * SLIDER * (place + 1) / len(steps))
    filled = "━" * (halves // 2) + "╸" * (halves % 2)
    text = Text("", no_wrap=True, overflow="ellipsis").append("◀ ", f"bold {BLUE}")
    text.append(filled, BLUE).append("─" * (SLIDER - len(filled)), "dim").append(" ▶", f"bold {BLUE}")
    return text.append(f" {place + 1}/{len(steps)}", "dim")


def cell_text(probe: Probe, row: int, column: int) -> Text:
    """The caption of a cell, with its similarity."""
    value = probe.similarity[row][column]
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("✓ " if column == row else f"{value:.2f} ", GREEN if column == row else "bold")
    return text.append(printable(probe.captions[column]), "" if column == row else "dim")


def probe_bars(captions: Sequence[str], ranked: Sequence[int], scores: Sequence[float], right: int) -> list[Bar]:
    """The captions of one image, best first; the cosine (-1 to 1) fills the bar from 0 to 1."""
    short = without_shared_words(captions)
    return [
        Bar(captions[column], max(0.0, scores[column]), f"{scores[column]:.2f}", column == right, short[column])
        for column in ranked
        if 0 <= column < min(len(captions), len(scores))
    ]


def _lines(texts: Sequence[Text]) -> Text:
    return Text("\n", no_wrap=True, overflow="ellipsis").join(texts)
