"""The metric table: one entry a measured value, read by everything that shows or compares one.

The log line, training_results.png, the charts and the numbers of the interface, health and the choice of the best
checkpoint take key, label, unit, direction, chart and format from here. A new metric is one entry and the code that
computes it; a value without an entry is still recorded and drawn in a chart of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

Kind = Literal["train", "eval", "system"]

SECOND = "second_validation_"  # before the key of a metric of the second validation set
RECALL_AT = (1, 5, 10)
WAYS = ("image_to_text", "text_to_image")


class Direction(StrEnum):
    """Which of two values is the better one."""

    HIGHER = "higher"
    LOWER = "lower"
    NONE = "none"


class Format(StrEnum):
    """How a value is written."""

    SHARE = "share"  # a fraction in [0, 1], written as a percentage
    FIXED = "fixed"  # three decimals
    NUMBER = "number"  # four significant digits
    WHOLE = "whole"  # no decimals


@dataclass(frozen=True)
class Chart:
    """Metrics that share an axis."""

    title: str
    log: bool = False  # the logarithmic axis makes sense


@dataclass(frozen=True)
class Metric:
    """One measured value.

    Args:
        key: its name in metrics.jsonl and in `scores`.
        label: what it is, for a table or a legend on its own.
        short: its name within its chart.
        log_line: it stands in the line that is printed at each evaluation.
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
        """The value as a person reads it: `18.9%`, `3.790`, `297 images/s`."""
        unit = f" {self.unit}" if self.unit else ""
        if self.format is Format.SHARE:
            return f"{value:.1%}"
        if self.format is Format.FIXED:
            return f"{value:.3f}{unit}"
        if self.format is Format.WHOLE:
            return f"{value:,.0f}{unit}"
        return f"{value:.4g}{unit}"

    def better(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other`; never where no direction is."""
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
    short = _SHORT[way] if k == 1 else f"{k} {_SHORT[way]}"
    return Metric(
        f"{way}_recall@{k}", "eval", f"recall@{k} {_TO[way]}", short, chart,
        direction=Direction.HIGHER, format=Format.SHARE, log_line=k == 1,
    )  # fmt: skip


def _share(key: str, kind: Kind, label: str, short: str, chart: str | None, *, log_line: bool = False) -> Metric:
    better = Direction.HIGHER
    return Metric(key, kind, label, short, chart, direction=better, format=Format.SHARE, log_line=log_line)


_TABLE = (
    Metric("loss", "train", "training loss", "train", "Loss", direction=Direction.LOWER, format=Format.FIXED),
    Metric(
        "val_loss", "eval", "val loss", "val", "Loss",
        direction=Direction.LOWER, format=Format.FIXED, log_line=True,
    ),
    *(_recall(way, k) for k in RECALL_AT for way in WAYS),
    _share("mean_recall", "eval", "mean recall", "mean recall", None),
    _share("zero_shot_top1", "eval", "zero-shot top-1", "top-1", "Zero-shot", log_line=True),
    _share("zero_shot_top5", "eval", "zero-shot top-5", "top-5", "Zero-shot"),
    _share("zero_shot_mean_per_class", "eval", "zero-shot mean per class", "mean per class", "Zero-shot"),
    _share("image_to_text_top1", "train", "batch top-1 image to text", "i→t", "Accuracy within the batch"),
    _share("text_to_image_top1", "train", "batch top-1 text to image", "t→i", "Accuracy within the batch"),
    Metric("lr", "train", "learning rate", "lr", "Learning rate"),
    Metric("grad_norm", "train", "gradient norm", "norm", "Gradient norm"),
    Metric("temperature", "train", "temperature", "temperature", "Temperature"),
    Metric("logit_scale", "train", "logit scale", "logit scale"),
    Metric("logit_bias", "train", "logit bias", "logit bias"),
    Metric("chance", "train", "loss at chance", "chance"),
    Metric("repeated_captions", "train", "repeated captions in the batch", "repeated", format=Format.SHARE),
    Metric(
        "images_per_second", "train", "throughput", "images/s", "Throughput",
        unit="images/s", direction=Direction.HIGHER, format=Format.WHOLE,
    ),
    Metric("data_wait", "train", "data wait", "wait", "Data wait", direction=Direction.LOWER, format=Format.SHARE),
    Metric("memory_mb", "train", "memory", "trainer", "Memory", unit="MB", format=Format.WHOLE),
    Metric("image_mean_cosine", "eval", "mean cosine of images", "images"),
    Metric("text_mean_cosine", "eval", "mean cosine of captions", "captions"),
    Metric("cpu_percent", "system", "CPU", "CPU", unit="%", format=Format.WHOLE),
    Metric("resident_mb", "system", "resident memory", "resident", unit="MB", format=Format.WHOLE),
    Metric("disk_free_gb", "system", "free disk", "free", unit="GB", format=Format.WHOLE),
    Metric("gpu_reserved_mb", "system", "GPU memory reserved", "GPU", unit="MB", format=Format.WHOLE),
    Metric("train_seconds", "eval", "training time", "time", unit="s", format=Format.WHOLE),
    Metric("seconds", "eval", "evaluation time", "time", unit="s"),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.key: metric for metric in _TABLE}
NOT_METRICS = frozenset({"kind", "step", "time", "epoch"})  # what else stands in a line of metrics.jsonl


def register(metric: Metric) -> None:
    """Add an entry to the table.

    Raises:
        ValueError: if there is one of that key.
    """
    if metric.key in METRICS:
        raise ValueError(f"the metric {metric.key!r} is registered already")
    METRICS[metric.key] = metric


def lookup(key: str) -> Metric:
    """The entry of a key; made up for the second validation set and for keys that nobody registered."""
    if key in METRICS:
        return METRICS[key]
    if key.startswith(SECOND):
        first = lookup(key.removeprefix(SECOND))
        label, short = f"second validation set, {first.label}", f"{first.short} (second)"
        return replace(first, key=key, label=label, short=short)
    return Metric(key, "train", key.replace("_", " "), key.replace("_", " "), chart=None)


def second(scores: Mapping[str, float]) -> dict[str, float]:
    """The recalls of an evaluation under the keys of the second validation set."""
    return {SECOND + key: value for key, value in scores.items() if "recall" in key}


def ordered(keys: Iterator[str] | Sequence[str] | Mapping[str, object]) -> list[Metric]:
    """The entries of these keys in the order of the table; the second validation set and unknown keys come last."""
    place = {key: number for number, key in enumerate(METRICS)}
    last = len(place)
    return sorted(
        (lookup(key) for key in keys if key not in NOT_METRICS),
        key=lambda metric: (place.get(metric.key, last + place.get(metric.key.removeprefix(SECOND), last)), metric.key),
    )


def log_line(scores: Mapping[str, float]) -> list[str]:
    """What the line of an evaluation says of its scores, a part each: `val loss 3.790`, `recall@1 ...`."""
    return [f"{metric.label} {metric.text(scores[metric.key])}" for metric in ordered(scores) if metric.log_line]


def best_by(scores: Mapping[str, float]) -> Metric:
    """The metric that the best checkpoint is chosen by: zero-shot top-1 where the captions are classes, since among few
    captions recall@5 and 10 are right by chance; else the mean of the recalls.
    """
    return METRICS["zero_shot_top1" if "zero_shot_top1" in scores else "mean_recall"]


def quality(scores: Mapping[str, float]) -> tuple[float, float]:
    """What checkpoints are compared by; the larger is better. Between equals, the lower validation loss."""
    return scores[best_by(scores).key], -scores["val_loss"]
