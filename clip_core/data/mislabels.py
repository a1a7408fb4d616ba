"""Pairs whose image and caption are far from each other by a model: likely mislabelled.

A cosine alone says little: some images and some captions are far from everything. So a pair is compared with its
alternatives among a sample of the set, in several ways, and how much each counts is learnt from pairs that are wrong
for certain: the same images with captions of others. No pair of the set needs to be known as right.

Shapes: P pairs, R sampled pairs, B pairs of a block, D embedding size, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clip_core.data.check import Check
from clip_core.data.progress import Progress, no_progress
from clip_core.scoring import FloatArray, IntArray, similarity

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]
Random = np.random.Generator

SAMPLE = 10_000  # pairs that all others are compared with
LEAST = 50  # pairs: with fewer nothing is estimated
LIKELY = 0.5  # a pair is named when it is likelier wrong than right
WEAK = 0.75  # AUC of pairs against random ones below which the model is too weak to name any
PRIOR_SHARE, PRIOR_PAIRS = 0.05, 100  # wrong pairs expected before any was seen, and how many pairs this counts for
_BLOCK = 512  # pairs scored at once: 80 MB of similarities
_NEIGHBOURS = 10
_FOLDS = 5
_SHRINKAGE = 0.2  # of the covariance towards a multiple of the identity
_STEP = 64  # pairs embedded between two reports
_BINS = 2048  # of the histograms of scores


class Towers(Protocol):
    """The part of an encoder that is needed: L2-normalised float32 (N, D), in the order given."""

    def encode_images(self, images: Sequence[Path]) -> FloatArray: ...
    def encode_texts(self, texts: Sequence[str]) -> FloatArray: ...


@dataclass(frozen=True)
class Mislabels:
    """What was found.

    Attributes:
        rows: pairs that are likelier wrong than right, the most likely first, (F,).
        likelihood: that each of them is wrong, (F,), falling.
        ranking: all scored pairs, the most suspicious first.
        separation: AUC of the set's pairs against random ones: 0.5 is a model that knows nothing of them.
        left_over: pairs not scored: fewer than `LEAST` of those that the model was trained on, or was not.
        classes: whether the captions were taken for classes, and only the images were embedded.
    """

    rows: IntArray
    likelihood: Values
    ranking: IntArray
    separation: float
    left_over: int
    classes: bool

    @property
    def expected(self) -> float:
        """The share of the named pairs that is expected to be wrong."""
        return float(self.likelihood.mean()) if len(self.rows) else 0.0


class _Pairs(NamedTuple):
    """Embeddings of pairs, (B, D) each, and what tells which of them match, int64 (B,)."""

    images: FloatArray
    texts: FloatArray
    image_ids: IntArray
    caption_ids: IntArray

    def rows(self, which: slice) -> "_Pairs":
        return _Pairs(self.images[which], self.texts[which], self.image_ids[which], self.caption_ids[which])

    def with_captions(self, texts: FloatArray, caption_ids: IntArray) -> "_Pairs":
        return self._replace(texts=texts, caption_ids=caption_ids)


def comparisons(pairs: _Pairs, sample: _Pairs, siblings: _Pairs) -> Values:
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


def find_mislabels(
    check: Check, towers: Towers, trained: Mask | None = None, progress: Progress = no_progress
) -> Mislabels | None:
    """Score all usable pairs, in blocks; None if there are fewer than `LEAST`.

    Where the captions are classes, an image is compared with the images of the classes by a classifier that has not
    seen it, and no caption is embedded. Otherwise image and caption are compared with those of a sample.
    Memory: the embeddings of the sample and of a block, and 40 bytes a pair.

    Args:
        trained: of all pairs, (P,), those that the model was trained on. They are judged apart from the others, as a
            model brings together what it memorised, and not by the pair's own cosine.
        progress: takes the number of embedded pairs and that of all.
    Raises:
        ImageError: if an image that was readable no longer is.
    """
    rows = np.flatnonzero(check.usable)
    if len(rows) < LEAST:
        return None
    rows = rows[np.argsort(check.image_of[rows], kind="stable")]  # the captions of an image follow each other
    random = np.random.default_rng(0)
    images, place = np.unique(check.image_of[rows], return_inverse=True)
    # whole images, so that the captions of one image are always scored together
    chosen = random.permutation(len(images))
    enough = max(int(np.searchsorted(np.cumsum(np.bincount(place)[chosen]), SAMPLE, "right")), 1)
    in_sample = np.isin(place, chosen[:enough])
    classes = bool(check.classes()) and len(images) == len(rows)
    known = np.zeros(len(rows), dtype=np.bool_) if trained is None else trained[rows]
    done = 0

    def embedded(pairs: int) -> None:
        nonlocal done
        done += pairs
        progress(done, len(rows))

    scorer = (_ByClass if classes else _ByCaption)(
        _Embedder(check, towers, embedded), rows[in_sample], known[in_sample], random
    )
    scores = np.empty(len(rows))
    scores[in_sample] = scorer.own
    rest = np.flatnonzero(~in_sample)
    for block in _blocks(place[rest]):
        places = rest[block]
        scores[places] = scorer(rows[places], known[places])
    likelihood, judged = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.bool_)
    separation = 0.0
    for group in (False, True):
        of_group = known == group
        null = scorer.null[scorer.null_trained == group]
        if of_group.sum() >= LEAST and len(null) >= LEAST // 2:
            found = calibrate(scores[of_group], null)
            likelihood[of_group], judged[of_group] = found.likelihood, True
            separation += found.separation * of_group.sum()
    order = np.flatnonzero(judged)
    order = order[np.lexsort((scores[order], -likelihood[order]))]
    flagged = order[likelihood[order] >= LIKELY]
    return Mislabels(
        rows[flagged],
        likelihood[flagged],
        rows[order],
        separation / max(len(order), 1),
        len(rows) - len(order),
        classes,
    )


def _blocks(images: IntArray) -> Iterator[slice]:
    """Slices of about `_BLOCK` pairs that do not cut between the captions of one image, unless it has more."""
    start = 0
    while start < len(images):
        stop = min(start + _BLOCK, len(images))
        if stop < len(images):
            first = int(np.searchsorted(images, images[stop], "left"))
            stop = first if first > start else stop
        yield slice(start, stop)
        start = stop


class _Embedder:
    """Embeds the set's pairs, each image and caption of a call once; `embedded` hears of every few pairs."""

    def __init__(self, check: Check, towers: Towers, embedded: Callable[[int], None]) -> None:
        self.check, self._towers, self._embedded = check, towers, embedded

    def pairs(self, rows: IntArray) -> _Pairs:
        table = self.check.table
        _, first, place = np.unique(table.caption[rows], return_index=True, return_inverse=True)
        captions = [self.check.pairs[int(row)].caption for row in rows[first]]
        texts = [self._towers.encode_texts(captions[at : at + _STEP]) for at in range(0, len(captions), _STEP)]
        return _Pairs(self.images(rows), np.concatenate(texts)[place], self.check.image_of[rows], table.caption[rows])

    def images(self, rows: IntArray) -> FloatArray:
        """(B,) -> (B, D)"""
        distinct, place, pairs = np.unique(self.check.image_of[rows], return_inverse=True, return_counts=True)
        parts = []
        for start in range(0, len(distinct), _STEP):
            part = slice(start, start + _STEP)
            files = [self.check.pairs[int(self.check.firsts[image])].image for image in distinct[part]]
            parts.append(self._towers.encode_images(files))
            self._embedded(int(pairs[part].sum()))
        return np.asarray(np.concatenate(parts)[place])


class _ByCaption:
    """Scores by `comparisons` with a sample.

    Attributes:
        own: scores of the sample. null: of its images with captions of others; null_trained: whether the model was
            trained on the pair that was replaced.
    """

    def __init__(self, embedder: "_Embedder", rows: IntArray, trained: Mask, random: Random) -> None:
        self.embedder = embedder
        self.sample = sample = embedder.pairs(rows)
        others = random.permutation(len(rows))
        captions = sample.caption_ids
        known = set(zip(sample.image_ids.tolist(), captions.tolist(), strict=True))
        wrong = np.array(
            [(i, c) not in known for i, c in zip(sample.image_ids.tolist(), captions[others].tolist(), strict=True)]
        )
        mixed = sample.with_captions(sample.texts[others], captions[others])
        blocks = list(_blocks(sample.image_ids))
        own = np.concatenate([comparisons(sample.rows(b), sample, sample.rows(b)) for b in blocks])
        null = np.concatenate([comparisons(mixed.rows(b), sample, sample.rows(b)) for b in blocks])
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

    The few wrong pairs of the set hardly disturb it. What the model memorised is not judged by its cosine, which
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


class _ByClass:
    """Scores by the margin of the pair's class over the likeliest other; the attributes are those of `_ByCaption`."""

    def __init__(self, embedder: "_Embedder", rows: IntArray, trained: Mask, random: Random) -> None:
        self.embedder, check = embedder, embedder.check
        self.known, first = np.unique(check.table.caption[check.usable], return_index=True)
        self.number = np.argsort(np.argsort(first))  # in the list's order: hashes differ from process to process
        images, labels = embedder.images(rows), self._labels(rows)
        content = check.images.facts["content"][check.image_of[rows]]
        _, groups = np.unique(content, axis=0, return_inverse=True)
        scores = class_agreement(images, labels, groups.ravel(), len(self.known), random)
        self.own = _margin(scores, labels)
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


@dataclass(frozen=True)
class Calibration:
    """`likelihood`: that the pair of each score is wrong, (P,); `share`: of all; `separation`: AUC over random."""

    likelihood: Values
    share: float
    separation: float


def calibrate(scores: Values, random: Values) -> Calibration:
    """How likely each pair is wrong, from what certainly wrong pairs score.

    The set is a mixture of right pairs, whose scores are taken to be normal with a spread of its own on either side,
    and of wrong ones, which score as the random ones do. The share of the wrong ones and the mode and spreads of the
    right ones are found by EM, with a weak prior for the share. Below an AUC of `WEAK` the two kinds cannot be told
    apart, and no pair is likely wrong.

    Args:
        scores: of the set's pairs, (P,). random: of pairs that are wrong for certain, (R,).
    """
    null = np.sort(random)
    # ties are counted as not below, on both sides
    separation = float(np.searchsorted(null, scores, "left").mean() + np.searchsorted(null, scores, "right").mean()) / (
        2 * len(null)
    )
    if separation < WEAK:
        return Calibration(np.zeros(len(scores)), 0.0, separation)
    edges = np.linspace(min(scores.min(), null[0]), max(scores.max(), null[-1]), _BINS + 1)
    at, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    counts = np.histogram(scores, edges)[0]
    of_wrong = _smoothed(np.histogram(null, edges)[0], at, max(null.std() * 1.06 * len(null) ** -0.2, width))
    mode = float(np.median(scores))
    above = max(float(np.quantile(scores, 0.84)) - mode, width)
    below, share, wrong = above, PRIOR_SHARE, np.zeros(_BINS)
    for _ in range(2000):
        of_right = _normal((at - mode) / np.where(at < mode, below, above)) * 2 / (below + above)
        wrong = share * of_wrong / np.maximum(share * of_wrong + (1 - share) * of_right, 1e-300)
        before, share = share, (counts @ wrong + PRIOR_SHARE * PRIOR_PAIRS) / (len(scores) + PRIOR_PAIRS)
        mode, below, above = _two_piece(at, counts * (1 - wrong), width)
        if abs(share - before) < 1e-7:
            break
    wrong = np.maximum.accumulate(wrong[::-1])[::-1]  # falls with the score
    return Calibration(np.interp(scores, at, wrong), float(share), separation)


def _two_piece(at: Values, counts: Values, least: float) -> tuple[float, float, float]:
    """Mode and spreads below and above it of a two-piece normal distribution by maximum likelihood (John 1982)."""
    below = np.cumsum([counts, counts * at, counts * at**2], axis=1)  # number, sum, sum of squares up to each place
    squares, above = (sums[2] - 2 * at * sums[1] + at**2 * sums[0] for sums in (below, below[:, -1:] - below))
    left, right = np.cbrt(np.maximum(squares, 0)), np.cbrt(np.maximum(above, 0))
    place = int(np.argmin(left + right))
    scale = (left[place] + right[place]) / counts.sum()
    return float(at[place]), max(left[place] * np.sqrt(scale), least), max(right[place] * np.sqrt(scale), least)


def _smoothed(counts: IntArray, at: Values, width: float) -> Values:
    """The density of a histogram with a normal kernel.  (bins,) -> (bins,)"""
    density = _normal((at[:, None] - at) / width) @ counts
    return np.asarray(density / (density.sum() * (at[1] - at[0])))


def _normal(values: Values) -> Values:
    return np.asarray(np.exp(-(values**2) / 2) / np.sqrt(2 * np.pi))
