"""Pairs whose image and caption are far from each other by a model: likely mislabelled.

A cosine alone says little: some images and some captions are far from everything. So a pair is compared with its
alternatives among a sample of the set, in several ways, and how much each counts is learnt from pairs that are wrong
for certain: the same images with captions of others. No pair of the set needs to be known as right.

Shapes: P pairs, N usable pairs, F found pairs.
"""

from dataclasses import dataclass

import numpy as np

from clip_core.data.check import Check
from clip_core.data.mislabel_likelihood import Values, calibrate
from clip_core.data.mislabel_scores import LEAST, ByCaption, ByClass, Embedder, Mask, Towers, blocks
from clip_core.data.progress import Progress, no_progress
from clip_core.scoring import IntArray

SAMPLE = 10_000  # pairs that all others are compared with
LIKELY = 0.5  # a pair is named when it is likelier wrong than right


@dataclass(frozen=True)
class Mislabels:
    """What was found.

    Attributes:
        rows: pairs that are likelier wrong than right, the most likely first, (F,).
        likelihood: that each of them is wrong, (F,), falling.
        ranking: all scored pairs, the most suspicious first.
        separation: AUC of the set's pairs against random ones: 0.5 is a model that knows nothing of them.
        left_over: pairs not scored: fewer than `LEAST` of those that the model was trained on, or was not.
        agreement: where the captions are classes, and only images were embedded: the share of the pairs that a
            classifier gives their own class, which has not seen them; else None.
    """

    rows: IntArray
    likelihood: Values
    ranking: IntArray
    separation: float
    left_over: int
    agreement: float | None

    @property
    def expected(self) -> float:
        """The share of the named pairs that is expected to be wrong."""
        return float(self.likelihood.mean()) if len(self.rows) else 0.0


def find_mislabels(
    check: Check, towers: Towers, trained: Mask | None = None, progress: Progress = no_progress
) -> Mislabels | None:
    """Score all usable pairs, in blocks; None if there are fewer than `LEAST`.

    Where the captions are classes, an image is compared with the images of the classes by a classifier that has not
    seen it, and no caption is embedded. Otherwise image and caption are compared with those of a sample.
    Memory: the embeddings of the sample and of a block, and 40 bytes a pair.

    Args:
        trained: of all pairs, (P,), those that the model was trained on. They are scored apart from the others, as a
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
    images = check.image_of[rows]
    in_sample = _sample(images, random)
    classes = bool(check.classes()) and len(np.unique(images)) == len(rows)
    known = np.zeros(len(rows), dtype=np.bool_) if trained is None else trained[rows]
    done = 0

    def embedded(pairs: int) -> None:
        nonlocal done
        done += pairs
        progress(done, len(rows))

    scorer = (ByClass if classes else ByCaption)(
        Embedder(check, towers, embedded), rows[in_sample], known[in_sample], random
    )
    scores = np.empty(len(rows))
    scores[in_sample] = scorer.own
    rest = np.flatnonzero(~in_sample)
    for block in blocks(images[rest]):
        places = rest[block]
        scores[places] = scorer(rows[places], known[places])
    likelihood, separation = _likelihood(scores, known, scorer)
    order = np.flatnonzero(~np.isnan(likelihood))
    order = order[np.lexsort((scores[order], -likelihood[order]))]
    flagged = order[likelihood[order] >= LIKELY]
    return Mislabels(
        rows[flagged], likelihood[flagged], rows[order], separation, len(rows) - len(order), scorer.agreement
    )


def _sample(images: IntArray, random: np.random.Generator) -> Mask:
    """About `SAMPLE` pairs of whole images, so that the captions of one image are scored together.  (N,) -> (N,)"""
    _, place, pairs = np.unique(images, return_inverse=True, return_counts=True)
    chosen = random.permutation(len(pairs))
    enough = max(int(np.searchsorted(np.cumsum(pairs[chosen]), SAMPLE, "right")), 1)
    return np.asarray(np.isin(place, chosen[:enough]))


def _likelihood(scores: Values, trained: Mask, scorer: ByCaption | ByClass) -> tuple[Values, float]:
    """The likelihood of each pair, (N,), NaN in a group that is too small, and the AUC, the mean of the groups."""
    likelihood, separation = np.full(len(scores), np.nan), 0.0
    for group in (False, True):
        of_group = trained == group
        null = scorer.null[scorer.null_trained == group]
        if of_group.sum() >= LEAST and len(null) >= LEAST // 2:
            found = calibrate(scores[of_group], null, scorer.odd)
            likelihood[of_group] = found.likelihood
            separation += found.separation * of_group.sum()
    return likelihood, separation / max(int((~np.isnan(likelihood)).sum()), 1)
