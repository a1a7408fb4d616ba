"""A validation image with the captions that the model, as it is now, finds closest."""

from collections.abc import Sequence
from pathlib import Path

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from clip_core.run.records import Probe
from clip_core.text import printable
from clip_tui.widgets.bars import Bar, Bars
from clip_tui.widgets.image_view import ImageView


class ProbeView(Horizontal):
    """Shows one image of a probe at a time."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._probe: Probe | None = None
        self._index = 0

    def compose(self) -> ComposeResult:
        yield ImageView()
        with Vertical():
            yield Static("", markup=False, classes="probe-caption")
            yield Bars()

    def on_mount(self) -> None:
        self._update()

    def reset(self) -> None:
        """Forget the probe and which of its images is shown, as when another run is opened."""
        self._probe, self._index = None, 0
        self._update()

    def show(self, probe: Probe | None) -> None:
        """Show another probe, on the image of the same place."""
        if probe is not self._probe:
            self._probe = probe
            self._update()

    def next(self) -> None:
        self._index += 1
        self._update()

    def _update(self) -> None:
        probe = self._probe
        rows = min(len(probe.images), len(probe.image_to_text), len(probe.similarity)) if probe else 0
        if probe is None or not rows:
            self.query_one(ImageView).show(None)
            self.query_one(".probe-caption", Static).update("no evaluation yet")
            self.query_one(Bars).show(())
            return
        row = self._index % rows
        image = Path(probe.images[row])
        self.query_one(ImageView).show(image)
        self.query_one(".probe-caption", Static).update(printable(f"{image.name}, step {probe.step}"))
        bars = probe_bars(probe.captions, probe.image_to_text[row], probe.similarity[row], right=row)
        self.query_one(Bars).show(bars)


def probe_bars(captions: Sequence[str], ranked: Sequence[int], scores: Sequence[float], right: int) -> list[Bar]:
    """The captions of one image, best first; the cosine (-1 to 1) fills the bar from 0 to 1."""
    return [
        Bar(captions[column], max(0.0, scores[column]), f"{scores[column]:.2f}", right=column == right)
        for column in ranked
        if 0 <= column < min(len(captions), len(scores))
    ]
