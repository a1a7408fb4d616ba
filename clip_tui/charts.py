"""The charts of a run, from the metric table: metrics that share an axis are drawn together."""

from collections.abc import Sequence

from clip_core.run.curve import Points
from clip_core.run.metrics import CHARTS, Format, Metric, charts_of
from clip_core.run.metrics import Chart as Axis
from clip_tui.watcher import Snapshot
from clip_tui.widgets.axes import Scale, View, XAxis
from clip_tui.widgets.plot import Chart, Line

_PARTS = (64, 32, 16, 8, 4, 2, 1)  # of a run that the axis may go to, while little of it is done
_EMPTY = Points.of(())


def charts(snapshot: Snapshot, view: View, others: Sequence[Snapshot] = ()) -> list[Chart]:
    """The charts of the table that have values, then one for every unregistered metric.

    Before the first evaluation the empty charts are there as well, so that charts keep their places when it comes.

    Args:
        view: a logarithmic axis is drawn where the table allows it.
        others: runs that are drawn over this one.
    """
    keys = list(dict.fromkeys(key for run in (snapshot, *others) for key in run.curves))
    measured = charts_of(keys)
    if not snapshot.evaluation:
        shown = {axis.title: metrics for axis, metrics in measured}
        measured = [(axis, shown.pop(axis.title, [])) for axis in CHARTS]
        measured += [(axis, metrics) for axis, metrics in charts_of(keys) if axis.title in shown]
    scale, end = scale_of(snapshot, view), axis_end((snapshot, *others))
    return [
        Chart(
            axis.title,
            tuple(_lines(snapshot, others, axis, metrics)),
            share=bool(metrics) and all(metric.format is Format.SHARE for metric in metrics),
            log=view.log_y and axis.log,
            last_step=end,
            best=snapshot.best.step if snapshot.best else None,
            scale=scale,
        )
        for axis, metrics in measured
    ]


def _lines(snapshot: Snapshot, others: Sequence[Snapshot], axis: Axis, metrics: Sequence[Metric]) -> list[Line]:
    """The curves of a chart: those of the open run, then each other run's, with its name at the first of them."""
    lines = []
    for run in (snapshot, *others):
        shown = [metric for metric in metrics if run is snapshot or metric.key in run.curves]
        for place, metric in enumerate(shown):
            name = run.name if others and place == 0 else ""
            points = run.curves.get(metric.key, _EMPTY)
            lines.append(Line(legend(axis, metric), points, latest(run, metric), run=name))
    return lines


def scale_of(snapshot: Snapshot, view: View) -> Scale:
    """What x means in the charts of a run."""
    batch = snapshot.record.resolved.batch_size if snapshot.record else 1
    times = snapshot.times if view.axis is XAxis.TIME else None
    return Scale(view.axis, view.log_x, batch if view.axis is XAxis.IMAGES else 1, times)


def axis_end(runs: Sequence[Snapshot]) -> float:
    """The step that the axis goes to: the whole run, or, at its beginning, the part of it that twice as much fits in.

    It does not grow with every step, so that only the end of a curve is drawn anew.
    """
    steps = max(run.status.steps if run.status else 0 for run in runs)
    done = max(run.step for run in runs)
    if done >= steps:
        return done
    part = next((part for part in _PARTS if done <= steps / part / 2), 1)
    return steps / part


def legend(axis: Axis, metric: Metric) -> str:
    """A metric's short name, unless the title or the unit contains it already."""
    return "" if metric.short.lower() in axis.title.lower() or metric.short == metric.unit else metric.short


def latest(snapshot: Snapshot, metric: Metric) -> str:
    """The last value of a metric, or a dash."""
    value = snapshot.value(metric.key)
    return "–" if value is None else metric.text(value)
