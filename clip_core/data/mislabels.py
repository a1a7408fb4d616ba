"""Pairs whose image and caption are far from each other by a model: likely mislabelled.

A cosine alone says little: some images and some captions are far from everything. So a pair is compared with its
alternatives among a sample of the set, and the threshold comes from pairs that are wrong for certain: the same images
with captions of others. No pair of the set needs to be known as right.

Shapes: P pairs, R sampled pairs, B pairs of a block, D embedding size, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clip_core.data.check import Check
from clip_core.data.progress import Progress, no_progress
from clip_core.scoring import FloatArray, IntArray, similarity

Values = NDArray[np.float64]

SAMPLE = 10_000  # pairs that all others are compared with
LEAST = 50  # pairs: with fewer nothing is estimated
PRECISION = 0.8  # at least this share of the flagged pairs is expected to be wrong
WEAK = 0.75  # AUC of pairs against random ones below which the model is said to be weak
_BLOCK = 512  # pairs scored at once: 80 MB of similarities
_NEIGHBOURS = 10
_FOLDS = 5
_SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity


class Towers(Protocol):
    """The part of an encoder that is needed: L2-normalised float32 (N, D), in the order given."""

    def encode_images(self, images: Sequence[Path]) -> FloatArray: ...
    def encode_texts(self, texts: Sequence[str]) -> FloatArray: ...


@dataclass(frozen=True)
class Mislabels:
    """What was found.

    Attributes:
        rows: pairs, the most likely first, (F,).
        likelihood: share of the pairs up to each that is expected to be wrong, (F,), falling.
        separation: AUC of the set's pairs against random ones: 0.5 is a model that knows nothing of them.
        checked: pairs that were scored.
        classes: whether the captions were taken for classes, and only the images were embedded.
    """

    rows: IntArray
    likelihood: Values
    separation: float
    checked: int
    classes: bool

    @property
    def expected(self) -> float:
        """The share of all these pairs that is expected to be wrong."""
        return float(self.likelihood[-1]) if len(self.rows) else 0.0


class _Pairs(NamedTuple):
    """Embeddings of pairs, (B, D) each, and what tells which of them match, int64 (B,)."""

    images: FloatArray
    texts: FloatArray
    image_ids: IntArray
    caption_ids: IntArray

    def rows(self, which: slice) -> "_Pairs":
        return _Pairs(self.images[which], self.texts[which], self.image_ids[which], self.caption_ids[which])


def agreement(pairs: _Pairs, sample: _Pairs) -> Values:
    """How much better image and caption fit each other than the sampled alternatives, larger is better.  -> (B,)

    The sum of four z-scores: of the pair's cosine among those of the image with all sampled captions, and of the
    caption with all sampled images; of the caption with the captions of the nearest images, and of the image with
    the images of the nearest captions. Sampled pairs that share the image or the caption are not counted.

    Source: the neighbour terms of LEMoN (Zhang et al. 2024), normalised for hubs as in CSLS (Conneau et al. 2018).
    """
    other = (pairs.image_ids[:, None] != sample.image_ids) & (pairs.caption_ids[:, None] != sample.caption_ids)
    counts = np.maximum(other.sum(axis=1), 1)
    own = (pairs.images * pairs.texts).sum(axis=1)

    def z(values: FloatArray, scores: FloatArray) -> Values:
        mean = np.where(other, scores, 0).sum(axis=1) / counts
        spread = np.sqrt((np.where(other, scores - mean[:, None], 0) ** 2).sum(axis=1) / counts)
        return np.asarray((values - mean) / np.maximum(spread, 1e-6), dtype=np.float64)

    def nearest(near: FloatArray, scores: FloatArray) -> FloatArray:
        k = min(_NEIGHBOURS, near.shape[1])
        places = np.argpartition(np.where(other, -near, np.inf), k - 1, axis=1)[:, :k]
        return np.asarray(np.take_along_axis(scores, places, axis=1).mean(axis=1), dtype=np.float32)

    images, texts = similarity(pairs.images, sample.images), similarity(pairs.texts, sample.texts)
    by_image, by_text = similarity(pairs.images, sample.texts), similarity(pairs.texts, sample.images)
    direct = z(own, by_image) + z(own, by_text)
    return direct + z(nearest(images, texts), texts) + z(nearest(texts, images), images)


def find_mislabels(check: Check, towers: Towers, progress: Progress = no_progress) -> Mislabels | None:
    """Score all usable pairs, in blocks; None if there are fewer than `LEAST`.

    Where the captions are classes, an image is compared with the images of the classes by a classifier that has not
    seen it, and no caption is embedded. Otherwise image and caption are compared with those of a sample.
    Memory: the embeddings of the sample and of a block, and eight bytes a pair.

    Args:
        progress: takes the number of scored pairs and that of all.
    Raises:
        ImageError: if an image that was readable no longer is.
    """
    rows = np.flatnonzero(check.usable)
    if len(rows) < LEAST:
        return None
    rows = rows[
        np.argsort(check.image_of[rows], kind="stable")
    ]  # so that an image with several captions is embedded once
    random = np.random.default_rng(0)
    sampled = np.sort(random.permutation(len(rows))[:SAMPLE])
    classes = bool(check.classes()) and len(np.unique(check.image_of[rows])) == len(rows)
    scorer = _ByClass if classes else _ByCaption
    scorer_of = scorer(check, towers, rows[sampled], random)
    scores, null = np.empty(len(rows)), scorer_of.null
    scores[sampled] = scorer_of.own
    rest = np.setdiff1d(np.arange(len(rows)), sampled)
    progress(len(sampled), len(rows))
    for start in range(0, len(rest), _BLOCK):
        places = rest[start : start + _BLOCK]
        scores[places] = scorer_of(rows[places])
        progress(len(sampled) + start + len(places), len(rows))
    found = calibrate(scores, null)
    flagged = np.flatnonzero(scores <= found.threshold)
    flagged = flagged[np.argsort(scores[flagged], kind="stable")]
    return Mislabels(rows[flagged], found.likelihood[flagged], found.separation, len(rows), classes)


class _ByCaption:
    """Scores by `agreement` with a sample; `own`: of the sample, `null`: of its images with captions of others."""

    def __init__(self, check: Check, towers: Towers, rows: IntArray, random: np.random.Generator) -> None:
        self.check, self.towers = check, towers
        self.sample = self._embed(rows)
        self.own = self._blocks(self.sample)
        others = random.permutation(len(rows))
        captions = self.sample.caption_ids
        known = set(zip(self.sample.image_ids.tolist(), captions.tolist(), strict=True))
        wrong = np.array(
            [
                (i, c) not in known
                for i, c in zip(self.sample.image_ids.tolist(), captions[others].tolist(), strict=True)
            ]
        )
        images, texts = np.flatnonzero(wrong), others[wrong]
        sample = self.sample
        self.null = self._blocks(
            _Pairs(sample.images[images], sample.texts[texts], sample.image_ids[images], captions[texts])
        )

    def __call__(self, rows: IntArray) -> Values:
        return agreement(self._embed(rows), self.sample)

    def _blocks(self, pairs: _Pairs) -> Values:
        blocks = (slice(start, start + _BLOCK) for start in range(0, len(pairs.images), _BLOCK))
        return np.concatenate([agreement(pairs.rows(block), self.sample) for block in blocks])

    def _embed(self, rows: IntArray) -> _Pairs:
        pairs, table = [self.check.pairs[int(row)] for row in rows], self.check.table
        _, first, place = np.unique(table.caption[rows], return_index=True, return_inverse=True)
        texts = self.towers.encode_texts([pairs[int(number)].caption for number in first])[place]
        return _Pairs(_images(self.check, self.towers, rows), texts, self.check.image_of[rows], table.caption[rows])


class _ByClass:
    """Scores by the margin of the pair's class over the likeliest other; `own` and `null` as in `_ByCaption`."""

    def __init__(self, check: Check, towers: Towers, rows: IntArray, random: np.random.Generator) -> None:
        self.check, self.towers = check, towers
        self.known, first = np.unique(check.table.caption[check.usable], return_index=True)
        self.number = np.argsort(np.argsort(first))  # in the list's order: hashes differ from process to process
        images, labels = _images(check, towers, rows), self._labels(rows)
        content = check.images.facts["content"][check.image_of[rows]]
        _, groups = np.unique(content, axis=0, return_inverse=True)
        scores = class_agreement(images, labels, groups.ravel(), len(self.known), random)
        self.own = _margin(scores, labels)
        others = (labels + random.integers(1, len(self.known), size=len(rows))) % len(self.known)
        self.null = _margin(scores, others)
        self.classifier = _discriminant(images, labels, len(self.known))

    def __call__(self, rows: IntArray) -> Values:
        return _margin(self.classifier(_images(self.check, self.towers, rows)), self._labels(rows))

    def _labels(self, rows: IntArray) -> IntArray:
        return np.asarray(self.number[np.searchsorted(self.known, self.check.table.caption[rows])])


def _images(check: Check, towers: Towers, rows: IntArray) -> FloatArray:
    """Embeddings of the pairs' images, each image embedded once.  (B,) -> (B, D)"""
    distinct, place = np.unique(check.image_of[rows], return_inverse=True)
    embeds = towers.encode_images([check.pairs[int(check.firsts[image])].image for image in distinct])
    return np.asarray(embeds[place])


def _margin(scores: Values, labels: IntArray) -> Values:
    """Log probability of the label minus that of the likeliest other class.  (B, C), (B,) -> (B,)"""
    at = np.arange(len(labels))
    others = scores.copy()
    others[at, labels] = -np.inf
    return np.asarray(scores[at, labels] - others.max(axis=1))


def class_agreement(
    images: FloatArray, labels: IntArray, groups: IntArray, classes: int, random: np.random.Generator
) -> Values:
    """Log probability of each class for each image, by a classifier that has not seen it.  -> (B, C)

    Linear discriminant analysis with a shrunk covariance: closed form, and little disturbed by wrong labels.
    Images of a group are never in different folds.
    """
    fold = random.integers(_FOLDS, size=int(groups.max(initial=0)) + 1)[groups]
    scores = np.zeros((len(images), classes))
    for number in range(_FOLDS):
        fit = fold != number
        scores[~fit] = _discriminant(images[fit], labels[fit], classes)(images[~fit])
    return scores


def _discriminant(images: FloatArray, labels: IntArray, classes: int) -> Callable[[FloatArray], Values]:
    """Fit on (N, D) and (N,); the answer maps (B, D) to log probabilities (B, C)."""
    counts = np.bincount(labels, minlength=classes)
    means = np.zeros((classes, images.shape[1]))
    np.add.at(means, labels, images.astype(np.float64))
    means /= np.maximum(counts, 1)[:, None]
    apart = images - means[labels]
    covariance = apart.T @ apart / max(len(images) - classes, 1)
    size = len(covariance)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.trace(covariance) / size * np.eye(size)
    weights = np.linalg.solve(covariance, means.T)  # (D, C)
    offsets = -(means.T * weights).sum(axis=0) / 2 + np.log(np.maximum(counts, 0.5) / len(images))

    def log_probabilities(rows: FloatArray) -> Values:
        logits = rows @ weights + offsets
        logits = logits - logits.max(axis=1, keepdims=True)
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))

    return log_probabilities


@dataclass(frozen=True)
class Calibration:
    """`threshold`: scores below it are flagged; `likelihood`: that the pair of each score is wrong, (P,)."""

    threshold: float
    likelihood: Values
    separation: float


def calibrate(scores: Values, random: Values) -> Calibration:
    """How likely each pair is wrong, from what certainly wrong pairs score.

    The set is a mixture of right pairs and, with an unknown share, wrong ones, which score as the random ones do. The
    scores of right pairs are taken to be symmetric about the median, so those above it say how many right ones are as
    far below; what is left in a low region, over the random ones there, is the share: the median of several regions.
    The likelihood below a score is then share x random / set there: the false discovery rate of Storey (2002) with the
    two kinds exchanged. A weak model, whose right pairs score like random ones, therefore flags few pairs or none.

    Args:
        scores: of the set's pairs, (P,). random: of pairs that are wrong for certain, (R,).
    """
    ordered, null = np.sort(scores), np.sort(random)
    # ties are counted as not below, on both sides
    separation = float(np.searchsorted(null, scores, "left").mean() + np.searchsorted(null, scores, "right").mean()) / (
        2 * len(null)
    )
    at = np.quantile(null, np.linspace(0.2, 0.95, 31))
    right = len(ordered) - np.searchsorted(ordered, 2 * np.median(ordered) - at, "left")  # as many below as above
    wrong = np.maximum(np.searchsorted(ordered, at, "right") - right, 0)
    shares = wrong / len(ordered) / (np.searchsorted(null, at, "right") / len(null))
    share = float(min(np.median(shares), 1.0))
    places = np.searchsorted(ordered, ordered, "right")
    tail = share * np.searchsorted(null, ordered, "right") / len(null) * len(ordered) / places
    tail = np.minimum(np.maximum.accumulate(tail[::-1])[::-1], 1.0)  # falls with the score
    flagged = np.flatnonzero(tail >= PRECISION)
    threshold = float(ordered[flagged[-1]]) if len(flagged) else -np.inf
    likelihood = np.interp(scores, ordered, tail)
    return Calibration(threshold, likelihood, separation)
