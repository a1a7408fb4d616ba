"""The charts of a run, from the metric table: metrics that share an axis are drawn together."""

from clip_core.run.metrics import CHARTS, Format, Metric, charts_of
from clip_core.run.metrics import Chart as Axis
from clip_tui.watcher import Snapshot
from clip_tui.widgets.plot import Chart, Line


def charts(snapshot: Snapshot, *, log: bool) -> list[Chart]:
    """The charts of the table that have values, then one for every unregistered metric.

    Before the first evaluation the empty charts are there as well, so that charts keep their places when it comes.

    Args:
        log: draw those on a logarithmic axis for which the table allows it.
    """
    measured = charts_of(snapshot.curves)
    if not snapshot.evaluation:
        shown = {axis.title: metrics for axis, metrics in measured}
        measured = [(axis, shown.pop(axis.title, [])) for axis in CHARTS]
        measured += [(axis, metrics) for axis, metrics in charts_of(snapshot.curves) if axis.title in shown]
    return [_chart(snapshot, axis, metrics, log=log and axis.log) for axis, metrics in measured]


def _chart(snapshot: Snapshot, axis: Axis, metrics: list[Metric], *, log: bool) -> Chart:
    return Chart(
        axis.title,
        [Line(legend(axis, metric), snapshot.curves[metric.key], _latest(snapshot, metric)) for metric in metrics],
        share=bool(metrics) and all(metric.format is Format.SHARE for metric in metrics),
        log=log,
        last_step=snapshot.step,
    )


def legend(axis: Axis, metric: Metric) -> str:
    """A metric's short name, unless the title or the unit contains it already."""
    return "" if metric.short.lower() in axis.title.lower() or metric.short == metric.unit else metric.short


def _latest(snapshot: Snapshot, metric: Metric) -> str:
    value = snapshot.value(metric.key)
    return "–" if value is None else metric.text(value)
