"""The metric table: one entry per measured value, read by everything that shows or compares one.

The log line, training_results.png, the charts and numbers of the TUI, health and the choice of the best checkpoint take
key, label, unit, direction, chart and format from here. A new metric is one entry and the code that computes it; a
value without an entry is still recorded, and drawn in a chart of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from clip_core.config import RECALL_AT

Kind = Literal["train", "eval", "system"]

SECOND = "second_validation_"  # before the key of a metric of the second validation set
WAYS = ("image_to_text", "text_to_image")
LOW, HIGH = "_low", "_high"  # after the key of a metric: the bounds of its 95 % confidence interval


class Direction(StrEnum):
    """Which of two values is better."""

    HIGHER = "higher"
    LOWER = "lower"
    NONE = "none"


class Format(StrEnum):
    """How a value is displayed."""

    SHARE = "share"  # a fraction in [0, 1], displayed as a percentage
    FIXED = "fixed"  # three decimals
    NUMBER = "number"  # four significant digits
    WHOLE = "whole"  # no decimals


@dataclass(frozen=True)
class Chart:
    """Metrics that share an axis."""

    title: str
    log: bool = False  # a logarithmic axis is useful


@dataclass(frozen=True)
class Metric:
    """One measured value.

    Args:
        key: its name in metrics.jsonl and in `scores`.
        kind: the kind of line that it is written in.
        label: its name in the log line, in a table or on its own.
        short: its name in the legend of its chart.
        chart: title of the chart that shows it; None where none does.
        log_line: whether the log line of an evaluation shows it.
    """

    key: str
    kind: Kind
    label: str
    short: str
    chart: str | None = None
    unit: str = ""
    direction: Direction = Direction.NONE
    format: Format = Format.NUMBER
    log_line: bool = False

    def text(self, value: float) -> str:
        """The value for display: `18.9%`, `3.790`, `297 images/s`."""
        unit = f" {self.unit}" if self.unit else ""
        if self.format is Format.SHARE:
            return f"{value:.1%}"
        if self.format is Format.FIXED:
            return f"{value:.3f}{unit}"
        if self.format is Format.WHOLE:
            return f"{value:,.0f}{unit}"
        return f"{value:.4g}{unit}"

    def better(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other`; never true for a metric without a direction."""
        if self.direction is Direction.NONE:
            return False
        return value > other if self.direction is Direction.HIGHER else value < other


CHARTS: list[Chart] = [
    Chart("Loss", log=True),
    Chart("Recall@1"),
    Chart("Recall@5 and 10"),
    Chart("Zero-shot"),
    Chart("Accuracy within the batch"),
    Chart("Learning rate"),
    Chart("Gradient norm", log=True),
    Chart("Temperature"),
    Chart("Throughput"),
    Chart("Data wait"),
    Chart("Memory"),
]

_TO = {"image_to_text": "image to text", "text_to_image": "text to image"}
_SHORT = {"image_to_text": "i→t", "text_to_image": "t→i"}


def _recall(way: str, k: int) -> Metric:
    chart = "Recall@1" if k == 1 else "Recall@5 and 10"
    short = _SHORT[way] if k == 1 else f"@{k} {_SHORT[way]}"
    return Metric(
        f"{way}_recall@{k}", "eval", f"recall@{k} {_TO[way]}", short, chart,
        direction=Direction.HIGHER, format=Format.SHARE, log_line=k == 1,
    )  # fmt: skip


def _bounds(metric: Metric) -> tuple[Metric, Metric]:
    """The entries of the bounds of its 95 % confidence interval."""
    return (
        Metric(metric.key + LOW, "eval", f"{metric.label}, 95% from", "from", format=metric.format),
        Metric(metric.key + HIGH, "eval", f"{metric.label}, 95% to", "to", format=metric.format),
    )


def _share(key: str, kind: Kind, label: str, short: str, chart: str | None, *, log_line: bool = False) -> Metric:
    better = Direction.HIGHER
    return Metric(key, kind, label, short, chart, direction=better, format=Format.SHARE, log_line=log_line)


# Entries that code refers to by name; the rest of the table is only looked up.
LOSS = Metric("loss", "train", "training loss", "train", "Loss", direction=Direction.LOWER, format=Format.FIXED)
VAL_LOSS = Metric(
    "val_loss", "eval", "val loss", "val", "Loss", direction=Direction.LOWER, format=Format.FIXED, log_line=True
)
CHANCE = Metric("chance", "train", "loss at chance", "chance", format=Format.FIXED)
LOGIT_SCALE = Metric("logit_scale", "train", "logit scale", "logit scale")
DATA_WAIT = Metric(
    "data_wait", "train", "data wait", "wait", "Data wait", direction=Direction.LOWER, format=Format.SHARE
)
REPEATED_CAPTIONS = Metric(
    "repeated_captions", "train", "repeated captions in the batch", "repeated", format=Format.SHARE
)
MEAN_RECALL = _share("mean_recall", "eval", "mean recall", "mean recall", None)
ZERO_SHOT_TOP1 = _share("zero_shot_top1", "eval", "zero-shot top-1", "top-1", "Zero-shot", log_line=True)
IMAGE_MEAN_COSINE = Metric("image_mean_cosine", "eval", "mean cosine of images", "images", format=Format.FIXED)
TEXT_MEAN_COSINE = Metric("text_mean_cosine", "eval", "mean cosine of captions", "captions", format=Format.FIXED)

_TABLE = (
    LOSS,
    VAL_LOSS,
    *(_recall(way, k) for k in RECALL_AT for way in WAYS),
    *(bound for way in WAYS for bound in _bounds(_recall(way, 1))),
    MEAN_RECALL,
    ZERO_SHOT_TOP1,
    *_bounds(ZERO_SHOT_TOP1),
    _share("zero_shot_top5", "eval", "zero-shot top-5", "top-5", "Zero-shot"),
    _share("zero_shot_mean_per_class", "eval", "zero-shot mean per class", "mean per class", "Zero-shot"),
    _share("image_to_text_top1", "train", "batch top-1 image to text", "i→t", "Accuracy within the batch"),
    _share("text_to_image_top1", "train", "batch top-1 text to image", "t→i", "Accuracy within the batch"),
    Metric("lr", "train", "learning rate", "lr", "Learning rate"),
    Metric("grad_norm", "train", "gradient norm", "norm", "Gradient norm"),
    Metric("temperature", "train", "temperature", "temperature", "Temperature"),
    LOGIT_SCALE,
    Metric("logit_bias", "train", "logit bias", "logit bias"),
    CHANCE,
    REPEATED_CAPTIONS,
    Metric(
        "images_per_second", "train", "throughput", "images/s", "Throughput",
        unit="images/s", direction=Direction.HIGHER, format=Format.WHOLE,
    ),
    DATA_WAIT,
    Metric("memory_mb", "train", "memory", "trainer", "Memory", unit="MB", format=Format.WHOLE),
    IMAGE_MEAN_COSINE,
    TEXT_MEAN_COSINE,
    Metric("cpu_percent", "system", "CPU", "CPU", unit="%", format=Format.WHOLE),
    Metric("resident_mb", "system", "resident memory", "resident", unit="MB", format=Format.WHOLE),
    Metric("disk_free_gb", "system", "free disk", "free", unit="GB", format=Format.WHOLE),
    Metric("gpu_percent", "system", "GPU", "GPU", unit="%", format=Format.WHOLE),
    Metric("gpu_reserved_mb", "system", "GPU memory reserved", "GPU", unit="MB", format=Format.WHOLE),
    Metric("train_seconds", "eval", "training time", "time", unit="s", format=Format.WHOLE),
    Metric("seconds", "eval", "evaluation time", "time", unit="s"),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.key: metric for metric in _TABLE}
NOT_METRICS = frozenset({"kind", "step", "time", "epoch"})  # the other fields of a line of metrics.jsonl


def register(metric: Metric) -> None:
    """Add an entry to the table; a chart title that no other metric uses makes a new chart.

    Raises:
        ValueError: if the key is registered already.
    """
    if metric.key in METRICS:
        raise ValueError(f"the metric {metric.key!r} is registered already")
    METRICS[metric.key] = metric


def lookup(key: str) -> Metric:
    """The entry of a key, derived from the first set's for the second validation set, else made up from the key."""
    if key in METRICS:
        return METRICS[key]
    first = METRICS.get(key.removeprefix(SECOND)) if key.startswith(SECOND) else None
    if first is not None:
        label, short = f"second validation set, {first.label}", f"{first.short} (second)"
        return replace(first, key=key, label=label, short=short)
    name = key.replace("_", " ")
    return Metric(key, "train", name, name)


def second(scores: Mapping[str, float]) -> dict[str, float]:
    """The recalls of an evaluation under the keys of the second validation set."""
    return {SECOND + key: value for key, value in scores.items() if "recall" in key}


def ordered(keys: Iterable[str]) -> list[Metric]:
    """The entries of these keys in table order; then the second validation set's, then unregistered keys."""
    place = {key: number for number, key in enumerate(METRICS)}
    last = len(place)
    return sorted(
        (lookup(key) for key in keys if key not in NOT_METRICS),
        key=lambda metric: (place.get(metric.key, last + place.get(metric.key.removeprefix(SECOND), last)), metric.key),
    )


def charts_of(keys: Iterable[str]) -> list[tuple[Chart, list[Metric]]]:
    """The charts that show these keys, in table order, each with its metrics.

    A metric of the second validation set shares the chart of the first set's. Every key that is not registered has a
    chart of its own, after the others.
    """
    shown: dict[str, list[Metric]] = {chart.title: [] for chart in CHARTS}
    alone: list[tuple[Chart, list[Metric]]] = []
    for metric in ordered(keys):
        if not _registered(metric.key):
            alone.append((Chart(metric.label), [metric]))
        elif metric.chart is not None:
            shown.setdefault(metric.chart, []).append(metric)
    known = {chart.title: chart for chart in CHARTS}
    return [(known.get(title, Chart(title)), metrics) for title, metrics in shown.items() if metrics] + alone


def _registered(key: str) -> bool:
    return key in METRICS or (key.startswith(SECOND) and key.removeprefix(SECOND) in METRICS)


def log_line(scores: Mapping[str, float]) -> list[str]:
    """The parts of an evaluation's log line: `val loss 3.790`, `recall@1 image to text 18.9% (16.0 to 22.1)`, ...

    The second validation set's are one part: `second validation set: recall@1 image to text 41.0% (...), ...`.
    """
    shown = [metric for metric in ordered(scores) if metric.log_line]
    parts = [f"{metric.label} {text_of(metric, scores)}" for metric in shown if not is_second(metric.key)]
    others = [
        f"{lookup(metric.key.removeprefix(SECOND)).label} {text_of(metric, scores)}"
        for metric in shown
        if is_second(metric.key)
    ]
    return [*parts, f"second validation set: {', '.join(others)}"] if others else parts


def text_of(metric: Metric, scores: Mapping[str, float]) -> str:
    """A score with its 95 % confidence interval, where that was computed: `18.9% (16.0 to 22.1)`."""
    low, high = scores.get(metric.key + LOW), scores.get(metric.key + HIGH)
    text = metric.text(scores[metric.key])
    return text if low is None or high is None else f"{text} ({100 * low:.1f} to {100 * high:.1f})"


def is_bound(key: str) -> bool:
    """Whether a key is a bound of another's confidence interval."""
    return key.endswith((LOW, HIGH))


def is_second(key: str) -> bool:
    """Whether a key is one of the second validation set's."""
    return key.startswith(SECOND)


def best_by(scores: Mapping[str, float]) -> Metric:
    """The metric that the best checkpoint is chosen by: zero-shot top-1 where the captions are classes (recall@5 and 10
    are easy among few captions), else the mean of the recalls.
    """
    return ZERO_SHOT_TOP1 if ZERO_SHOT_TOP1.key in scores else MEAN_RECALL


def quality(scores: Mapping[str, float]) -> tuple[float, float]:
    """Sort key of checkpoints, larger is better: the value of `best_by`, then the lower validation loss."""
    return scores[best_by(scores).key], -scores[VAL_LOSS.key]
