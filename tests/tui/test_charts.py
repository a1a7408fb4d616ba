"""Charts and numbers are made from the metric table."""

from dataclasses import replace
from pathlib import Path

from clip_core.run.curve import Bucket, Points
from clip_core.run.metrics import CHARTS, METRICS, Direction, Format, Metric, register
from clip_core.run.records import Pointer, State, Status
from clip_tui.charts import axis_end, charts
from clip_tui.status_line import validation_rows
from clip_tui.watcher import Snapshot
from clip_tui.widgets.axes import View


def measured(train: dict[str, float], evaluation: dict[str, float]) -> Snapshot:
    curves = {key: Points.of([Bucket(5, 5, value, value)]) for key, value in (train | evaluation).items()}
    return Snapshot(Path("run"), State.RUNNING, curves=curves, train=train, evaluation=evaluation)


def test_metrics_of_a_chart_share_it_under_the_names_of_the_table() -> None:
    snapshot = measured({"loss": 3.79}, {"val_loss": 3.9, "image_to_text_recall@1": 0.184})
    loss, recall = charts(snapshot, View())
    assert (loss.title, [(line.name, line.latest) for line in loss.lines]) == (
        "Loss",
        [("train", "3.790"), ("val", "3.900")],
    )
    assert recall.share
    assert [(line.name, line.latest) for line in recall.lines] == [("i→t", "18.4%")]


def test_the_logarithmic_axis_is_drawn_where_the_table_allows_it() -> None:
    snapshot = measured({"loss": 3.79, "temperature": 0.07}, {"val_loss": 3.9})
    assert [(chart.title, chart.log) for chart in charts(snapshot, View(log_y=True))] == [
        ("Loss", True),
        ("Temperature", False),
    ]


def test_before_the_first_evaluation_every_chart_has_its_place() -> None:
    titles = [chart.title for chart in charts(measured({"loss": 1.0, "odd": 2.0}, {}), View())]
    assert titles == [*(chart.title for chart in CHARTS), "odd"]


def test_an_unregistered_metric_has_a_chart_of_its_own() -> None:
    snapshot = measured({"loss": 1.0, "my_thing": 0.25}, {"val_loss": 1.0})
    assert charts(snapshot, View())[-1].title == "my thing"


def test_a_newly_registered_metric_appears_in_its_chart_and_among_the_scores() -> None:
    metric = Metric(
        "median_rank", "eval", "median rank", "median", "Rank", direction=Direction.LOWER, format=Format.WHOLE
    )
    register(metric)
    try:
        snapshot = measured({"loss": 1.0}, {"val_loss": 1.0, "median_rank": 12.0})
        assert [(c.title, c.lines[0].latest) for c in charts(snapshot, View())][-1] == ("Rank", "12")
        assert ("median rank", "12", "–", False) in validation_rows(snapshot)
    finally:
        del METRICS[metric.key]


def test_scores_are_shown_beside_those_of_the_best_checkpoint_which_come_first() -> None:
    scores = {"val_loss": 1.7, "mean_recall": 0.5}
    snapshot = replace(
        measured({"loss": 1.0}, {"val_loss": 1.5, "mean_recall": 0.4}),
        best=Pointer(checkpoint="step_0000003", step=3, metric="mean_recall", scores=scores),
    )
    assert validation_rows(snapshot) == [
        ("mean recall*", "40.0%", "50.0%", False),
        ("val loss", "1.500", "1.700", True),
    ]


def test_where_there_is_room_a_score_has_its_confidence_interval() -> None:
    scores = {"image_to_text_recall@1": 0.189, "image_to_text_recall@1_low": 0.16, "image_to_text_recall@1_high": 0.22}
    snapshot = measured({"loss": 1.0}, scores)
    assert validation_rows(snapshot) == [("R@1 i→t", "18.9%", "–", False)]
    assert validation_rows(snapshot, intervals=True) == [("R@1 i→t", "18.9% (16-22)", "–", False)]


def test_at_the_beginning_of_a_run_the_axis_ends_early_and_it_seldom_grows() -> None:
    def end(step: int) -> float:
        return axis_end([Snapshot(Path("run"), State.RUNNING, Status(step=step, steps=6400))])

    assert [end(step) for step in (1, 50, 51, 100, 3000, 6400)] == [100, 100, 200, 200, 6400, 6400]
    assert len({end(step) for step in range(6401)}) == 7
