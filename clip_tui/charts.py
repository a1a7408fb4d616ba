"""The charts of a run, from the metric table: metrics that share an axis are drawn together."""

from collections.abc import Iterator

from clip_core.run.metrics import CHARTS, Format, Metric, ordered
from clip_tui.watcher import Snapshot
from clip_tui.widgets.plot import Chart, Line


def charts(snapshot: Snapshot, *, log: bool) -> list[Chart]:
    """The charts of the table, then one for every other metric that the run reports.

    Args:
        log: draw those on a logarithmic axis for which the table allows it.
    """
    groups = list(metric_groups(snapshot))
    return [_chart(snapshot, title, metrics, log=log and logarithmic) for title, logarithmic, metrics in groups]


def metric_groups(snapshot: Snapshot) -> Iterator[tuple[str, bool, list[Metric]]]:
    """Title, whether a logarithmic axis makes sense, and the metrics that were measured, chart by chart.

    Until the first evaluation the table's empty charts are there as well, so that nothing moves when it comes.
    """
    measured = ordered(snapshot.curves)
    for chart in CHARTS:
        metrics = [metric for metric in measured if metric.chart == chart.title]
        if metrics or not snapshot.evaluation:
            yield chart.title, chart.log, metrics
    titles = {chart.title for chart in CHARTS}
    for metric in measured:
        if metric.chart not in titles:
            yield metric.label, False, [metric]


def _chart(snapshot: Snapshot, title: str, metrics: list[Metric], *, log: bool) -> Chart:
    return Chart(
        title,
        [Line(legend(title, metric), snapshot.curves[metric.key], _latest(snapshot, metric)) for metric in metrics],
        share=bool(metrics) and all(metric.format is Format.SHARE for metric in metrics),
        log=log,
        last_step=snapshot.step,
    )


def legend(title: str, metric: Metric) -> str:
    """A metric's short name, unless the title or the unit says it already."""
    return "" if metric.short.lower() in title.lower() or metric.short == metric.unit else metric.short


def _latest(snapshot: Snapshot, metric: Metric) -> str:
    value = snapshot.value(metric.key)
    return "–" if value is None else metric.text(value)
