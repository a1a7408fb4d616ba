"""Two models on the same set: which queries changed, and whether the difference is more than chance."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_core.scoring import IntArray, bootstrap_means

Hits = NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """One figure of the second model against the first, on the same queries.

    `gained`: queries that only the second model gets right, `lost`: only the first. `p_value`: of McNemar's exact test,
    that gained and lost queries are equally likely. `interval`: of the difference, 95 %, queries drawn in pairs.
    """

    what: str  # zero_shot_top1, image_to_text_recall@1, ...
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    gained: int
    lost: int
    p_value: float


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value of McNemar's test: a binomial test of the changed queries.

    Source: McNemar 1947; the exact form is the sign test.
    """
    changed = gained + lost
    terms = np.arange(min(gained, lost) + 1)
    logs = np.array([math.lgamma(changed + 1) - math.lgamma(k + 1) - math.lgamma(changed - k + 1) for k in terms])
    return min(1.0, 2 * float(np.exp(logs - changed * math.log(2)).sum()))


def compare(what: str, first: Hits, second: Hits, groups: IntArray | None = None, seed: int = 0) -> Comparison:
    """Hits of both models on the same queries, each of shape (Q,); `groups` as in `recall_interval`."""
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    change = second.astype(np.float64) - first
    low, high = np.quantile(bootstrap_means(change, groups, seed), [0.025, 0.975])
    return Comparison(
        what,
        float(first.mean()),
        float(second.mean()),
        float(change.mean()),
        (float(low), float(high)),
        gained,
        lost,
        mcnemar(gained, lost),
    )
