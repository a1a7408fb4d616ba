"""A new metric is one entry in the table and one value in an evaluation; everything else finds it there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clip_core.run.history import History
from clip_core.run.metrics import METRICS, Direction, Format, Metric, log_line, register
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_core.run.writer import RunWriter
from clip_core.training.results_plot import results_figure
from clip_tui.charts import charts
from clip_tui.watcher import RunWatch
from clip_tui.widgets.axes import View

KEY = "image_to_text_median_rank"
SCORES = {"val_loss": 2.0, "mean_recall": 0.4, "image_to_text_recall@1": 0.3, "text_to_image_recall@1": 0.2}


@pytest.fixture
def metric() -> Iterator[Metric]:
    """The entry, registered for one test."""
    metric = Metric(
        KEY, "eval", "median rank", "i→t", "Median rank",
        direction=Direction.LOWER, format=Format.FIXED, log_line=True,
    )  # fmt: skip
    register(metric)
    yield metric
    del METRICS[KEY]


@pytest.fixture
def run(metric: Metric, tmp_path: Path) -> Path:
    """A run whose evaluations have the metric."""
    writer = RunWriter(tmp_path / "run")
    writer.status(state=State.RUNNING, step=20, steps=40)
    for step in (10, 20):
        writer.metric("train", step, loss=2.0)
        writer.metric("eval", step, **SCORES, **{KEY: 100.0 / step})
    writer.close()
    return tmp_path / "run"


def test_a_registered_metric_is_in_the_log_line(metric: Metric) -> None:
    parts = log_line(SCORES | {KEY: 5.0})
    assert parts[-1] == "median rank 5.000"
    assert log_line(SCORES) == parts[:-1]


def test_a_registered_metric_is_in_the_image(run: Path) -> None:
    history = History(RunReader(run))
    history.refresh()
    (axes,) = [axes for axes in results_figure(history.curves()).axes if axes.get_title() == "Median rank"]
    assert list(axes.lines[0].get_ydata()) == [10.0, 5.0]
    assert axes.get_legend().get_texts()[0].get_text() == "i→t"


def test_a_registered_metric_is_in_the_charts_and_numbers_of_the_tui(run: Path) -> None:
    snapshot = RunWatch(run).refresh()
    found = [chart for chart in charts(snapshot, View()) if any(line.points for line in chart.lines)]
    (chart,) = [chart for chart in found if "rank" in chart.title.lower()]
    assert [(bucket.first, bucket.low) for bucket in chart.lines[0].points] == [(10, 10.0), (20, 5.0)]
    assert chart.lines[0].latest == "5.000"
