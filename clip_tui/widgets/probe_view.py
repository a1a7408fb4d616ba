"""A validation image with the captions that the model, as it is now, finds closest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from clip_core.text import printable
from clip_tui.widgets.bars import Bar, Bars
from clip_tui.widgets.image_view import ImageView


class ProbeView(Horizontal):
    """Shows one image of a probe at a time."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._probe: Mapping[str, Any] | None = None
        self._index = 0

    def compose(self) -> ComposeResult:
        yield ImageView()
        with Vertical():
            yield Static("", markup=False, classes="probe-caption")
            yield Bars()

    def show(self, probe: Mapping[str, Any] | None) -> None:
        """Show another probe file's content, on the same image."""
        if probe is not self._probe:
            self._probe = probe
            self._update()

    def next(self) -> None:
        self._index += 1
        self._update()

    def _update(self) -> None:
        probe = self._probe or {}
        images, captions = _texts(probe, "images"), _texts(probe, "captions")
        ranked, scores = probe.get("image_to_text"), probe.get("similarity")
        if not images or not captions or not isinstance(ranked, list) or not isinstance(scores, list):
            self.query_one(".probe-caption", Static).update("at the first evaluation")
            return
        row = self._index % min(len(images), len(ranked), len(scores))
        self.query_one(ImageView).show(Path(images[row]))
        about = f"{Path(images[row]).name}, step {probe.get('step')}"
        self.query_one(".probe-caption", Static).update(printable(about))
        self.query_one(Bars).show(probe_bars(captions, ranked[row], scores[row], right=row))


def probe_bars(captions: Sequence[str], ranked: Sequence[int], scores: Sequence[float], right: int) -> list[Bar]:
    """The captions of one image, best first; the cosine (-1 to 1) fills the bar from 0 to 1."""
    return [
        Bar(captions[column], max(0.0, scores[column]), f"{scores[column]:.2f}", right=column == right)
        for column in ranked
        if isinstance(column, int) and 0 <= column < min(len(captions), len(scores))
    ]


def _texts(probe: Mapping[str, Any], name: str) -> list[str]:
    values = probe.get(name)
    return [str(value) for value in values] if isinstance(values, list) else []
