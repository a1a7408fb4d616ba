from pathlib import Path

import numpy as np
import pytest

from clip_core.run.metrics import (
    CHARTS,
    METRICS,
    NOT_METRICS,
    SECOND,
    Chart,
    Direction,
    Format,
    Metric,
    best_by,
    charts_of,
    log_line,
    lookup,
    ordered,
    quality,
    register,
    second,
)
from clip_core.run.reader import RunReader
from clip_core.scoring import retrieval_scores, zero_shot_scores


def test_every_score_that_is_computed_is_in_the_table() -> None:
    embeddings = np.eye(12, dtype=np.float32)
    rows = np.arange(12)
    scores = retrieval_scores(embeddings, embeddings, rows, rows) | zero_shot_scores(embeddings, embeddings, rows)
    assert scores.keys() <= METRICS.keys()
    assert all(lookup(key).kind == "eval" for key in scores)


def test_every_chart_of_the_table_exists_and_is_used() -> None:
    titles = {chart.title for chart in CHARTS}
    assert {metric.chart for metric in METRICS.values()} - {None} == titles


def test_metrics_of_a_chart_have_different_names_and_the_same_unit() -> None:
    for _, metrics in charts_of(METRICS):
        assert len({metric.short for metric in metrics}) == len(metrics)
        assert len({(metric.unit, metric.format) for metric in metrics}) == 1


@pytest.mark.parametrize(
    ("format", "unit", "value", "text"),
    [
        (Format.SHARE, "", 0.1888, "18.9%"),
        (Format.FIXED, "", 3.79, "3.790"),
        (Format.WHOLE, "images/s", 1234.5, "1,234 images/s"),
        (Format.NUMBER, "", 0.000123456, "0.0001235"),
        (Format.NUMBER, "s", 12.0, "12 s"),
    ],
)
def test_a_value_is_displayed_in_its_format_with_its_unit(format: Format, unit: str, value: float, text: str) -> None:
    assert Metric("x", "train", "x", "x", unit=unit, format=format).text(value) == text


def test_better_follows_the_direction() -> None:
    higher, lower, none = (Metric("x", "eval", "x", "x", direction=direction) for direction in
                           (Direction.HIGHER, Direction.LOWER, Direction.NONE))  # fmt: skip
    assert higher.better(2, 1)
    assert not higher.better(1, 1)
    assert lower.better(1, 2)
    assert not none.better(1, 2)
    assert not none.better(2, 1)


def test_charts_are_in_table_order_whatever_the_order_of_the_keys() -> None:
    keys = ["zero_shot_top1", "lr", "val_loss", "loss", "image_to_text_recall@1"]
    titles = [(chart.title, [metric.key for metric in metrics]) for chart, metrics in charts_of(keys)]
    assert titles == [
        ("Loss", ["loss", "val_loss"]),
        ("Recall@1", ["image_to_text_recall@1"]),
        ("Zero-shot", ["zero_shot_top1"]),
        ("Learning rate", ["lr"]),
    ]
    assert charts_of(reversed(keys)) == charts_of(keys)
    assert charts_of(["step", "time", "kind", "epoch"]) == []


def test_the_second_validation_set_shares_the_chart_of_the_first() -> None:
    key = "text_to_image_recall@1"
    ((chart, metrics),) = charts_of([SECOND + key, key])
    assert chart.title == "Recall@1"
    assert [metric.key for metric in metrics] == [key, SECOND + key]
    assert metrics[1].label == "second validation set, recall@1 text to image"
    assert metrics[1].text(0.5) == "50.0%"


def test_unregistered_keys_have_a_chart_each_after_the_others() -> None:
    charts = charts_of(["my_score", "a", SECOND + "b", "loss"])
    assert [chart.title for chart, _ in charts] == ["Loss", "a", "my score", "second validation b"]
    assert all(len(metrics) == 1 for _, metrics in charts)


def test_metrics_without_a_chart_are_not_drawn() -> None:
    assert METRICS["chance"].chart is None
    assert charts_of(["chance", SECOND + "mean_recall"]) == []


def test_a_new_metric_may_bring_a_new_chart_and_no_key_is_registered_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'loss' is registered already"):
        register(METRICS["loss"])
    monkeypatch.setitem(METRICS, "ece", Metric("ece", "eval", "calibration error", "ECE", chart="Calibration"))
    assert [chart for chart, _ in charts_of(["ece", "loss"])] == [Chart("Loss", log=True), Chart("Calibration")]


def test_the_log_line_has_the_metrics_that_ask_for_it_in_table_order() -> None:
    scores = {"mean_recall": 0.4, "zero_shot_top1": 0.5, "image_to_text_recall@1": 0.189, "val_loss": 3.79}
    scores |= {"image_to_text_recall@1_low": 0.16, "image_to_text_recall@1_high": 0.2211}
    scores |= second(scores)
    assert log_line(scores) == [
        "val loss 3.790",
        "recall@1 image to text 18.9% (16.0 to 22.1)",
        "zero-shot top-1 50.0%",
        "second validation set: recall@1 image to text 18.9% (16.0 to 22.1)",
    ]


def test_only_recall_is_measured_on_the_second_validation_set() -> None:
    scores = {"mean_recall": 0.4, "text_to_image_recall@5": 0.5, "val_loss": 3.0, "zero_shot_top1": 0.2}
    assert second(scores) == {SECOND + "mean_recall": 0.4, SECOND + "text_to_image_recall@5": 0.5}


def test_the_best_checkpoint_is_chosen_by_zero_shot_for_classes_else_by_mean_recall() -> None:
    recall = {"mean_recall": 0.4, "val_loss": 3.0}
    assert best_by(recall).key == "mean_recall"
    assert best_by(recall | {"zero_shot_top1": 0.1}).key == "zero_shot_top1"
    assert quality(recall) == (0.4, -3.0)
    assert quality(recall | {"val_loss": 2.0}) > quality(recall)
    assert quality(recall | {"mean_recall": 0.5, "val_loss": 9.0}) > quality(recall)


def test_unknown_keys_are_last() -> None:
    keys = ["zzz", SECOND + "mean_recall", "loss", "aaa", "mean_recall"]
    assert [metric.key for metric in ordered(keys)] == ["loss", "mean_recall", SECOND + "mean_recall", "aaa", "zzz"]


def test_every_value_that_a_run_measures_is_in_the_table_with_its_kind(trained_run: Path) -> None:
    lines = [line for line in RunReader(trained_run).all_lines() if line["kind"] != "event"]
    measured = {(line["kind"], key) for line in lines for key in line if key not in NOT_METRICS}
    assert {kind for kind, _ in measured} == {"train", "eval", "system"}
    assert {(METRICS[key].kind, key) for _, key in measured} == measured
