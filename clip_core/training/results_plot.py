"""training_results.png: every chart of the metric table that a run has values for, in one image."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_core.files import replacing
from clip_core.run.curve import Bucket
from clip_core.run.history import History
from clip_core.run.metrics import Chart, Format, Metric, charts_of
from clip_core.run.reader import RunReader
from clip_core.run.records import Pointer
from clip_core.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3
_MOST_CHARTS = 60
_FEW_POINTS = 50  # up to which each point has a marker
_LONGEST_LABEL = 40


def draw_curves(run: Path) -> Path | None:
    """Write training_results.png from a run's metrics; None where there are none."""
    reader = RunReader(run)
    history = History(reader)
    history.refresh()
    curves = history.curves()
    if not curves:
        return None
    figure = results_figure(curves, reader.best())
    with replacing(reader.paths.plot) as beside:
        figure.savefig(beside, format="png", dpi=110)
    return reader.paths.plot


def results_figure(curves: Mapping[str, Sequence[Bucket]], best: Pointer | None = None) -> "Figure":
    """The charts of these curves in table order, the best checkpoint's step marked in each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    charts = charts_of(curves)[:_MOST_CHARTS]
    rows = max(1, math.ceil(len(charts) / _COLUMNS))
    figure = Figure(figsize=(4 * _COLUMNS, 3.5 * rows))
    FigureCanvasAgg(figure)
    # Margins of fixed size: a layout that matplotlib fits lays out every text twice, half of the time of the drawing.
    figure.subplots_adjust(0.06, 0.5 / (3.5 * rows), 0.99, 1 - 0.35 / (3.5 * rows), wspace=0.25, hspace=0.35)
    for place, (chart, metrics) in enumerate(charts, 1):
        _draw(figure.add_subplot(rows, _COLUMNS, place), chart, [(each, curves[each.key]) for each in metrics], best)
    return figure


def _draw(axes: Any, chart: Chart, lines: Sequence[tuple[Metric, Sequence[Bucket]]], best: Pointer | None) -> None:
    """One chart."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    unit = lines[0][0].unit
    axes.set_title(_label(f"{chart.title}, {unit}" if unit and unit not in chart.title else chart.title), fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.grid(alpha=0.3)
    for metric, buckets in lines:
        points = _points(buckets)
        marker = "." if len(points) <= _FEW_POINTS else None
        axes.plot(*zip(*points, strict=True), label=_label(metric.short), linewidth=1.2, marker=marker)
    if best is not None:
        axes.axvline(best.step, color="grey", linestyle="--", linewidth=1, label=f"best checkpoint, step {best.step}")
    if chart.log and all(bucket.low > 0 for _, buckets in lines for bucket in buckets):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    shares = all(metric.format is Format.SHARE for metric, _ in lines)
    axes.yaxis.set_major_formatter((lambda value, _: f"{100 * value:.4g}%") if shares else _six_digits)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8)


def _six_digits(value: float, _: object) -> str:
    return f"{value:.6g}"


def _points(buckets: Sequence[Bucket]) -> list[tuple[float, float]]:
    """The smallest and the largest value of each bucket, at its middle, so that every spike is drawn."""
    points: list[tuple[float, float]] = []
    for bucket in buckets:
        middle = (bucket.first + bucket.last) / 2
        points += [(middle, bucket.low)] if bucket.low == bucket.high else [(middle, bucket.low), (middle, bucket.high)]
    return points


def _label(text: str) -> str:
    """Text from a file as plain text: `$` begins a formula in matplotlib, `_` hides a label."""
    return printable(text, _LONGEST_LABEL).replace("$", r"\$").lstrip("_") or "?"
