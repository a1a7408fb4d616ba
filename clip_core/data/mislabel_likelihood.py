"""How likely a pair is wrong, from its score and from those of pairs that are wrong for certain.

Shapes: P pairs, R random pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_core.scoring import IntArray

Values = NDArray[np.float64]

WEAK = 0.8  # AUC of pairs against random ones below which the model is too weak to name any
PRIOR_SHARE, PRIOR_PAIRS = 0.05, 100  # wrong pairs expected before any was seen, and how many pairs this counts for
_BINS = 2048  # of the histograms of scores


@dataclass(frozen=True)
class Calibration:
    """`likelihood`: that the pair of each score is wrong, (P,); `share`: of all; `separation`: AUC over random."""

    likelihood: Values
    share: float
    separation: float


def calibrate(scores: Values, random: Values, odd: float) -> Calibration:
    """How likely each pair is wrong, from what certainly wrong pairs score.

    The set is a mixture of right pairs, whose scores are taken to be normal with a spread of its own on either side,
    of right pairs that the model is as wrong about as about random ones, and of wrong ones, which score as the random
    ones do. The share of the wrong ones and the mode and spreads of the right ones are found by EM, with a weak prior
    for the share. Below an AUC of `WEAK` the kinds overlap too much, and no pair is likely wrong.

    Args:
        scores: of the set's pairs, (P,). random: of pairs that are wrong for certain, (R,).
        odd: the share of the right pairs that score as random ones, which the scores cannot tell.
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
        of_right = (1 - odd) * _normal((at - mode) / np.where(at < mode, below, above)) * 2 / (below + above)
        density = np.maximum(share * of_wrong + (1 - share) * (of_right + odd * of_wrong), 1e-300)
        wrong, right = share * of_wrong / density, (1 - share) * of_right / density
        before, share = share, (counts @ wrong + PRIOR_SHARE * PRIOR_PAIRS) / (len(scores) + PRIOR_PAIRS)
        mode, below, above = _two_piece(at, counts * right, width)
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
