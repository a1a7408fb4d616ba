"""How well image and caption of a pair fit by a model, beside the rest of the set; higher is better.

Shapes: N rows, R sampled pairs, B pairs of a block, D embedding size, C classes, F comparisons.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clip_core.data.check import Check
from clip_core.scoring import FloatArray, IntArray, similarity

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]

LEAST = 50  # pairs: with fewer nothing is estimated
_BLOCK = 512  # pairs scored at once: 80 MB of similarities
_STEP = 64  # pairs embedded between two reports
_NEIGHBOURS = 10
_FOLDS = 5
_ODD = 0.005  # share of the right pairs that score as random ones do
_ODD_ERRORS = 0.05  # of the pairs that a classifier errs about
_SHRINKAGE = 0.2  # of the covariance towards a multiple of the identity


class Towers(Protocol):
    """The part of an encoder that is needed: L2-normalised float32 (N, D), in the order given."""

    def encode_images(self, images: Sequence[Path]) -> FloatArray: ...
    def encode_texts(self, texts: Sequence[str]) -> FloatArray: ...


class Pairs(NamedTuple):
    """Embeddings of pairs, (B, D) each, and what tells which of them match, int64 (B,)."""

    images: FloatArray
    texts: FloatArray
    image_ids: IntArray
    caption_ids: IntArray

    def rows(self, which: slice) -> "Pairs":
        return Pairs(self.images[which], self.texts[which], self.image_ids[which], self.caption_ids[which])

    def with_captions(self, texts: FloatArray, caption_ids: IntArray) -> "Pairs":
        return self._replace(texts=texts, caption_ids=caption_ids)


class Embedder:
    """Embeds the set's pairs, each image and caption of a call once; `embedded` hears of every few pairs."""

    def __init__(self, check: Check, towers: Towers, embedded: Callable[[int], None]) -> None:
        self.check, self._towers, self._embedded = check, towers, embedded

    def pairs(self, rows: IntArray) -> Pairs:
        table = self.check.table
        _, first, place = np.unique(table.caption[rows], return_index=True, return_inverse=True)
        captions = [self.check.pairs[int(row)].caption for row in rows[first]]
        texts = [self._towers.encode_texts(captions[at : at + _STEP]) for at in range(0, len(captions), _STEP)]
        return Pairs(self.images(rows), np.concatenate(texts)[place], self.check.image_of[rows], table.caption[rows])

    def images(self, rows: IntArray) -> FloatArray:
        """(B,) -> (B, D)"""
        distinct, place, pairs = np.unique(self.check.image_of[rows], return_inverse=True, return_counts=True)
        parts = []
        for start in range(0, len(distinct), _STEP):
            part = slice(start, start + _STEP)
            parts.append(self._embed(distinct[part]))
            self._embedded(int(pairs[part].sum()))
        return np.asarray(np.concatenate(parts)[place])

    def _embed(self, images: IntArray) -> FloatArray:
        """Images by their rows, (N,) -> (N, D); those of a stream were embedded while they were read."""
        facts = self.check.images
        known = facts.embedded[images] >= 0 if facts.embeddings else np.zeros(len(images), dtype=np.bool_)
        files = [self.check.pairs[int(self.check.firsts[image])].image for image in images[~known]]
        if facts.embeddings is None or not known.any():
            return self._towers.encode_images(files)
        stored = facts.embeddings.rows(facts.embedded[images[known]])
        found = np.empty((len(images), stored.shape[1]), dtype=np.float32)
        found[known] = stored
        if files:
            found[~known] = self._towers.encode_images(files)
        return found


def blocks(images: IntArray) -> Iterator[slice]:
    """Slices of about `_BLOCK` pairs that do not cut between the captions of one image, unless it has more."""
    start = 0
    while start < len(images):
        stop = min(start + _BLOCK, len(images))
        if stop < len(images):
            first = int(np.searchsorted(images, images[stop], "left"))
            stop = first if first > start else stop
        yield slice(start, stop)
        start = stop


def comparisons(pairs: Pairs, sample: Pairs, siblings: Pairs) -> Values:
    """How much better image and caption fit each other than the sampled alternatives, in five ways.  -> (B, 5)

    Each is a z-score: of the pair's cosine among those of the image with all sampled captions (0), and of the caption
    with all sampled images (1); of the caption with the captions of the nearest images (2), and of the image with the
    images of the nearest captions (3); of the caption with the image's other captions, the siblings (4; NaN if it has
    none). Sampled pairs that share the image or the caption are not counted.

    Args:
        siblings: the set's pairs in the places of `pairs`, among them all others of the same images.

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

    related = (pairs.image_ids[:, None] == siblings.image_ids) & (pairs.caption_ids[:, None] != siblings.caption_ids)
    np.fill_diagonal(related, val=False)
    among = np.where(related, similarity(pairs.texts, siblings.texts), 0).sum(axis=1) / np.maximum(
        related.sum(axis=1), 1
    )
    images, texts = similarity(pairs.images, sample.images), similarity(pairs.texts, sample.texts)
    by_image, by_text = similarity(pairs.images, sample.texts), similarity(pairs.texts, sample.images)
    return np.stack(
        [
            z(own, by_image),
            z(own, by_text),
            z(nearest(images, texts), texts),
            z(nearest(texts, images), images),
            np.where(related.any(axis=1), z(among, texts), np.nan),
        ],
        axis=1,
    )


class ByCaption:
    """Scores by `comparisons` with a sample.

    Attributes:
        own: scores of the sample. null: of its images with captions of others; null_trained: whether the model was
            trained on the pair that was replaced.
        odd: the share of the right pairs that is taken to score as random ones do, see `calibrate`.
        agreement: None.
    """

    odd = _ODD
    agreement: float | None = None

    def __init__(self, embedder: Embedder, rows: IntArray, trained: Mask, random: np.random.Generator) -> None:
        self.embedder = embedder
        self.sample = sample = embedder.pairs(rows)
        others = random.permutation(len(rows))
        captions = sample.caption_ids
        known = set(zip(sample.image_ids.tolist(), captions.tolist(), strict=True))
        wrong = np.array(
            [(i, c) not in known for i, c in zip(sample.image_ids.tolist(), captions[others].tolist(), strict=True)]
        )
        mixed = sample.with_captions(sample.texts[others], captions[others])
        parts = list(blocks(sample.image_ids))
        own = np.concatenate([comparisons(sample.rows(b), sample, sample.rows(b)) for b in parts])
        null = np.concatenate([comparisons(mixed.rows(b), sample, sample.rows(b)) for b in parts])
        self.weights = {
            group: _weights(own[trained == group], null[wrong & (trained == group)], memorised=group)
            for group in (False, True)
        }
        self.own = self._scores(own, trained)
        self.null, self.null_trained = self._scores(null, trained)[wrong], trained[wrong]

    def __call__(self, rows: IntArray, trained: Mask) -> Values:
        pairs = self.embedder.pairs(rows)
        return self._scores(comparisons(pairs, self.sample, pairs), trained)

    def _scores(self, values: Values, trained: Mask) -> Values:
        scores = np.empty(len(values))
        for group, (weights, typical) in self.weights.items():
            of_group = trained == group
            scores[of_group] = np.where(np.isnan(values[of_group]), typical, values[of_group]) @ weights
        return scores


def _weights(own: Values, null: Values, *, memorised: bool) -> tuple[Values, Values]:
    """What each of the comparisons counts: logistic regression of the set's pairs against wrong ones.

    The few wrong pairs of the set hardly disturb it. What the model memorised is not scored by its cosine, which
    tells the set from random pairs perfectly and a right pair from a wrong one not at all.

    Returns:
        the weights, (5,), and the values that stand for missing ones, (5,).
    """
    typical, weights = np.zeros(own.shape[1]), np.zeros(own.shape[1])
    if min(len(own), len(null)) < LEAST // 2:
        return weights, typical
    used = np.asarray(~np.isnan(own).all(axis=0))
    used[:2] &= not memorised
    typical[used] = np.nanmean(own[:, used], axis=0)
    values = np.concatenate([own, null])[:, used]
    values = np.where(np.isnan(values), typical[used], values)
    weights[used] = _logistic(values, np.arange(len(values)) < len(own))
    return weights, typical


def _logistic(values: Values, of_set: Mask) -> Values:
    """Weights of a logistic regression with an intercept, L2 penalty 1, by Newton's method.  (N, F), (N,) -> (F,)"""
    values = np.column_stack([values, np.ones(len(values))])
    weights, penalty = np.zeros(values.shape[1]), np.diag([1.0] * (values.shape[1] - 1) + [1e-6])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(values @ weights, -30, 30)))
        slope = values.T @ (chance - of_set) + penalty @ weights
        step = np.linalg.solve((values * (chance * (1 - chance))[:, None]).T @ values + penalty, slope)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    return weights[:-1]


class ByClass:
    """Scores by the margin of the pair's class over the likeliest other.

    Attributes:
        own, null, null_trained, odd: as of `ByCaption`; the weaker the classifier, the more right pairs are odd.
        agreement: the share of the sample that a classifier gives its own class, which has not seen it.
    """

    def __init__(self, embedder: Embedder, rows: IntArray, trained: Mask, random: np.random.Generator) -> None:
        self.embedder, check = embedder, embedder.check
        self.known, first = np.unique(check.table.caption[check.usable], return_index=True)
        self.number = np.argsort(np.argsort(first))  # in the list's order: hashes differ from process to process
        images, labels = embedder.images(rows), self._labels(rows)
        content = check.images.facts["content"][check.image_of[rows]]
        _, groups = np.unique(content, axis=0, return_inverse=True)
        scores = class_agreement(images, labels, groups.ravel(), len(self.known), random)
        self.own = _margin(scores, labels)
        self.agreement: float | None = float((self.own > 0).mean())
        self.odd = _ODD_ERRORS * (1 - self.agreement)
        others = (labels + random.integers(1, len(self.known), size=len(rows))) % len(self.known)
        self.null, self.null_trained = _margin(scores, others), trained
        self.classifier = _discriminant(images, labels, len(self.known))

    def __call__(self, rows: IntArray, trained: Mask) -> Values:
        return _margin(self.classifier(self.embedder.images(rows)), self._labels(rows))

    def _labels(self, rows: IntArray) -> IntArray:
        return np.asarray(self.number[np.searchsorted(self.known, self.embedder.check.table.caption[rows])])


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
