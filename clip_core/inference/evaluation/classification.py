"""Zero-shot classification of a set: predictions, accuracy per class, confusion, calibration, average precision.

Shapes: N images, D embedding size, C classes, B bins of confidence.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_core.scoring import FloatArray, IntArray, Values, mean_interval, similarity, softmax

_CHUNK = 1024  # images whose logits are in memory at once
_COLUMNS = 64  # classes whose scores of all images are in memory at once
BINS = 15


@dataclass(frozen=True)
class Predictions:
    """What a classifier says about each image; all of shape (N,)."""

    labels: IntArray  # the true class
    predicted: IntArray  # the class of the largest logit, the first of equals
    ranks: IntArray  # classes that come before the true one
    confidence: FloatArray  # probability of the predicted class


def classify(images: FloatArray, classes: FloatArray, labels: IntArray, logit_scale: float) -> Predictions:
    """The predictions for single-label images, by softmax of the scaled cosines.  (N, D), (C, D), (N,)

    The logits of 1,024 images are in memory at a time.
    """
    count = len(images)
    predicted, ranks = np.empty(count, np.int64), np.empty(count, np.int64)
    confidence = np.empty(count, np.float32)
    columns = np.arange(len(classes))
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        scores, own = similarity(np.asarray(images[rows]), classes), labels[rows, None]
        best = scores.argmax(axis=1)
        true = np.take_along_axis(scores, own, axis=1)
        predicted[rows] = best
        ranks[rows] = ((scores > true) | ((scores == true) & (columns < own))).sum(axis=1)
        confidence[rows] = np.take_along_axis(softmax(logit_scale * scores), best[:, None], axis=1)[:, 0]
    return Predictions(labels, predicted, ranks, confidence)


def average_precision(
    images: FloatArray, classes: FloatArray, target_rows: IntArray, target_classes: IntArray
) -> Values:
    """Average precision of each class over all images, images ranked by their cosine with it.  -> (C,)

    Images of equal score are taken together, as in scikit-learn's `average_precision_score`. A class without an
    image has NaN.

    Args:
        target_rows, target_classes: an image and one of its classes in each place; multi-label images have several.
    """
    answer = np.full(len(classes), np.nan)
    order = np.argsort(target_classes, kind="stable")
    target_rows, target_classes = target_rows[order], target_classes[order]
    for start in range(0, len(classes), _COLUMNS):
        block = classes[start : start + _COLUMNS]
        scores = np.concatenate(
            [similarity(block, np.asarray(images[at : at + _CHUNK])) for at in range(0, len(images), _CHUNK)], axis=1
        )
        for number, row in enumerate(scores):
            low, high = np.searchsorted(target_classes, [start + number, start + number + 1])
            if high > low:
                answer[start + number] = precision_of(row, target_rows[low:high])
    return answer


def precision_of(scores: FloatArray, positives: IntArray) -> float:
    """Average precision of one ranking: scores of all, and the rows of the positives."""
    every, own = np.sort(scores), np.sort(scores[positives])
    at_least = len(every) - np.searchsorted(every, own, side="left")
    found = len(own) - np.searchsorted(own, own, side="left")
    return float((found / at_least).mean())


@dataclass(frozen=True)
class ClassRow:
    """One class of the per-class table; fractions, and None where they are not defined (0 of 0)."""

    name: str
    images: int
    recall: float | None  # of its images, predicted as it
    precision: float | None  # of the images predicted as it, its own
    f1: float | None
    average_precision: float | None
    confused_with: str | None  # the class that its images are most often taken for
    confused: int  # how many


def confusion_counts(predictions: Predictions, classes: int) -> IntArray:
    """Images of each (true class, predicted class) that occurs.  -> (cells, 3): true, predicted, images"""
    cells, counts = np.unique(predictions.labels * classes + predictions.predicted, return_counts=True)
    return np.stack([cells // classes, cells % classes, counts], axis=1)


def per_class(names: list[str], cells: IntArray, precisions: Values) -> list[ClassRow]:
    """The per-class table, in the order of the classes.

    Args:
        cells: from `confusion_counts`.
        precisions: from `average_precision`, (C,).
    """
    true, predicted, counts = cells.T
    images = np.bincount(true, counts, len(names)).astype(int)
    called = np.bincount(predicted, counts, len(names)).astype(int)
    right = np.bincount(true[true == predicted], counts[true == predicted], len(names)).astype(int)
    worst: dict[int, tuple[int, int]] = {}
    for row, column, count in cells.tolist():
        if row != column and count > worst.get(row, (0, 0))[1]:
            worst[row] = column, count
    rows = []
    for number, name in enumerate(names):
        other, confused = worst.get(number, (None, 0))
        both = images[number] + called[number]
        rows.append(
            ClassRow(
                name,
                int(images[number]),
                _share(right[number], images[number]),
                _share(right[number], called[number]),
                _share(2 * right[number], both),
                None if np.isnan(precisions[number]) else float(precisions[number]),
                None if other is None else names[other],
                confused,
            )
        )
    return rows


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


@dataclass(frozen=True)
class Bin:
    """Images whose confidence is in (low, high]; the first bin has 0 as well."""

    low: float
    high: float
    images: int
    confidence: float | None  # mean, None where the bin is empty
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """How well confidence and accuracy agree.

    `ece`: mean of |accuracy - confidence| over the bins, weighted by their images. `over`: mean confidence minus
    accuracy, above 0 for an overconfident model.
    """

    ece: float
    over: float
    bins: list[Bin]


def calibration(confidence: FloatArray, hits: NDArray[np.bool_], bins: int = BINS) -> Calibration:
    """Expected calibration error with bins of equal width.

    A confidence on the edge of two bins counts in the lower one, so that 1.0 is in the last bin.
    Source: Guo et al. 2017, section 2.
    """
    place = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    sums = np.bincount(place, confidence, bins)
    right = np.bincount(place, hits, bins)
    rows = [
        Bin(
            number / bins,
            (number + 1) / bins,
            int(images[number]),
            _share(sums[number], images[number]),
            _share(right[number], images[number]),
        )
        for number in range(bins)
    ]
    error = float(np.abs(right - sums).sum() / max(len(confidence), 1))
    return Calibration(error, float((sums.sum() - right.sum()) / max(len(confidence), 1)), rows)


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot classification of a set. Fractions in [0, 1]; `*_interval`: low and high of 95 %.

    Of multi-label images there is only `mean_average_precision`.
    """

    mean_average_precision: float  # over the classes that have images
    top1: float | None = None
    top1_interval: tuple[float, float] | None = None
    top5: float | None = None  # None for fewer than six classes, of which five are always nearly all
    top5_interval: tuple[float, float] | None = None
    mean_per_class: float | None = None
    calibration: Calibration | None = None
    per_class: list[ClassRow] | None = None
    confusion: list[list[int]] | None = None  # [true class, predicted class, images] of those that occur


def zero_shot(predictions: Predictions, names: list[str], precisions: Values, bins: int, seed: int) -> ZeroShot:
    """All figures of single-label predictions."""
    hits1, hits5 = predictions.ranks == 0, predictions.ranks < 5
    cells = confusion_counts(predictions, len(names))
    rows = per_class(names, cells, precisions)
    many = len(names) > 5
    return ZeroShot(
        float(np.nanmean(precisions)),
        float(hits1.mean()),
        mean_interval(hits1.astype(np.float64), seed=seed),
        float(hits5.mean()) if many else None,
        mean_interval(hits5.astype(np.float64), seed=seed) if many else None,
        float(np.mean([row.recall for row in rows if row.recall is not None])),
        calibration(predictions.confidence, hits1, bins),
        rows,
        cells.tolist(),
    )
