"""Charts and numbers are made from the metric table."""

from pathlib import Path

from clip_core.run.curve import Bucket
from clip_core.run.metrics import CHARTS, METRICS, Direction, Format, Metric, register
from clip_core.run.records import State
from clip_tui.charts import charts
from clip_tui.screens.live import facts
from clip_tui.watcher import Snapshot


def measured(train: dict[str, float], evaluation: dict[str, float]) -> Snapshot:
    curves = {key: [Bucket(5, 5, value, value)] for key, value in (train | evaluation).items()}
    return Snapshot(Path("run"), State.RUNNING, curves=curves, train=train, evaluation=evaluation)


def test_metrics_of_a_chart_share_it_under_the_names_of_the_table() -> None:
    snapshot = measured({"loss": 3.79}, {"val_loss": 3.9, "image_to_text_recall@1": 0.184})
    loss, recall = charts(snapshot, log=False)
    assert (loss.title, [(line.name, line.latest) for line in loss.lines]) == (
        "Loss",
        [("train", "3.790"), ("val", "3.900")],
    )
    assert recall.share
    assert [(line.name, line.latest) for line in recall.lines] == [("i→t", "18.4%")]


def test_the_logarithmic_axis_is_drawn_where_the_table_allows_it() -> None:
    snapshot = measured({"loss": 3.79, "temperature": 0.07}, {"val_loss": 3.9})
    assert [(chart.title, chart.log) for chart in charts(snapshot, log=True)] == [
        ("Loss", True),
        ("Temperature", False),
    ]


def test_before_the_first_evaluation_every_chart_has_its_place() -> None:
    titles = [chart.title for chart in charts(measured({"loss": 1.0, "odd": 2.0}, {}), log=False)]
    assert titles == [*(chart.title for chart in CHARTS), "odd"]


def test_an_unregistered_metric_has_a_chart_and_a_number_of_its_own() -> None:
    snapshot = measured({"loss": 1.0, "my_thing": 0.25}, {"val_loss": 1.0})
    assert charts(snapshot, log=False)[-1].title == "my thing"
    assert ("my thing", "0.25") in facts(snapshot, 30)


def test_a_newly_registered_metric_appears_in_chart_and_numbers() -> None:
    metric = Metric(
        "median_rank", "eval", "median rank", "median", "Rank", direction=Direction.LOWER, format=Format.WHOLE
    )
    register(metric)
    try:
        snapshot = measured({"loss": 1.0}, {"val_loss": 1.0, "median_rank": 12.0})
        assert [(c.title, c.lines[0].latest) for c in charts(snapshot, log=False)][-1] == ("Rank", "12")
        assert ("Rank", "median 12") in facts(snapshot, 30)
    finally:
        del METRICS[metric.key]


def test_numbers_that_do_not_fit_on_a_line_go_on_in_the_next() -> None:
    values = {f"{way}_recall@{k}": 0.5 for way in ("image_to_text", "text_to_image") for k in (5, 10)}
    lines = [fact for fact in facts(measured({}, values), 26) if fact][1:]
    assert [name for name, _ in lines] == ["Recall@5 and …", ""]
    assert all(len(value) <= 26 for _, value in lines)
