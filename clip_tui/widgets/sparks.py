"""A strip of small curves over the whole run: machine, throughput, learning rate, gradient norm, temperature."""

from typing import NamedTuple

import numpy as np
from rich.text import Text
from textual.widgets import Static

from clip_core.run.curve import Points
from clip_core.run.metrics import lookup
from clip_tui.numbers import number, percent
from clip_tui.theme import BLUE
from clip_tui.watcher import Snapshot
from clip_tui.widgets.canvas import Floats

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
LABEL_WIDTH, WIDEST = 5, 10  # of a name; of a curve
_VALUE_WIDTH = 6


class Spark(NamedTuple):
    """A small curve.

    Attributes:
        key: of the metric table.
        name: at most LABEL_WIDTH characters.
        top: the value of a full bar; None takes the highest.
        share: whether the value is a fraction, shown in percent.
    """

    key: str
    name: str
    top: float | None = None
    share: bool = False


SPARKS = (
    Spark("lr", "lr"),
    Spark("grad_norm", "grad"),
    Spark("temperature", "temp"),
    Spark("images_per_second", "img/s"),
    Spark("data_wait", "wait", 1.0, share=True),
    Spark("cpu_percent", "CPU %"),
    Spark("memory_mb", "MB"),
    Spark("gpu_percent", "GPU %", 100.0),
)


class Sparks(Static):
    """The strip; as many lines as it has."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__("", markup=False, id=id)
        self._text = Text()

    def show(self, snapshot: Snapshot, end: float) -> None:
        """The curves from step 0 to `end`."""
        bars = ASCII_BARS if "-ascii" in self.app.classes else BARS
        text = strip_text(snapshot, end, self.content_size.width, max(1, self.content_size.height), bars)
        if text != self._text:
            self._text = text
            self.update(text, layout=False)


def strip_text(snapshot: Snapshot, end: float, width: int, lines: int, bars: str = BARS) -> Text:
    """Every curve with its name and its last value, in `lines` lines of columns of equal width."""
    each = -(-len(SPARKS) // lines)
    room = max(1, width // each)
    curve = min(WIDEST, room - LABEL_WIDTH - _VALUE_WIDTH - 4)
    text = Text(no_wrap=True, overflow="ellipsis")
    for place, spark in enumerate(SPARKS):
        if place:
            text.append("\n" if place % each == 0 else "│", "dim")
        points, value = snapshot.curves.get(spark.key), snapshot.value(spark.key)
        cell = Text().append(f" {spark.name} ", "dim")
        if points is not None and len(points) and curve > 0:
            cell.append(sparkline(points, end, curve, bars, spark.top), BLUE)
        cell.append(f" {_value(spark, value)}")
        cell.truncate(room - 1, pad=True)
        text.append_text(cell)
    return text


def _value(spark: Spark, value: float | None) -> str:
    if value is None:
        return "–"
    if spark.share:
        return percent(value, 0)
    return lookup(spark.key).text(value).split()[0] if abs(value) >= 100 else number(value, 3)


def sparkline(points: Points, end: float, width: int, bars: str = BARS, top: float | None = None) -> str:
    """A bar for the mean of each part of the run, blank where nothing was measured.

    Args:
        end: the step at the right.
        top: the value of a full bar; bars then begin at 0. None: from the lowest to the highest value.
    """
    middle: Floats = (points.first + points.last) / 2
    column = np.clip((middle / max(end, 1e-9) * width).astype(np.int64), 0, width - 1)
    counts = np.bincount(column, minlength=width)
    means = np.bincount(column, points.mean, minlength=width) / np.maximum(counts, 1)
    known = means[counts > 0]
    low, high = (0.0, top) if top is not None else (float(known.min()), float(known.max()))
    spread = (high - low) or 1.0
    levels = np.clip(np.rint((means - low) / spread * (len(bars) - 1)), 0, len(bars) - 1).astype(np.int64)
    if top is None and high - low <= 1e-9 * max(abs(high), 1e-300):
        levels[:] = len(bars) // 2  # a constant
    _carry(levels, counts)
    first = int(np.flatnonzero(counts)[0])
    last = int(np.flatnonzero(counts)[-1])
    return "".join(bars[level] if first <= at <= last else " " for at, level in enumerate(levels.tolist()))


def _carry(levels: "np.typing.NDArray[np.int64]", counts: "np.typing.NDArray[np.int64]") -> None:
    """Where nothing was measured between two values, the one before stays."""
    for at in range(1, len(levels)):
        if not counts[at]:
            levels[at] = levels[at - 1]
