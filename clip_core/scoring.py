"""Similarity, top-k, recall@k and zero-shot accuracy of embeddings, in NumPy.

Shapes: Q queries, G gallery rows, D embedding size, C classes, N images, P pairs.
"""

import numpy as np
from numpy.typing import NDArray

from clip_core.config import RECALL_AT
from clip_core.errors import ShapeError

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Values = NDArray[np.float64]

BOOTSTRAP_ROUNDS = 2000
_CHUNK = 1024  # rows of the similarity matrix in memory at once


def l2_normalise(vectors: FloatArray) -> FloatArray:
    """Rows scaled to length 1; a zero row stays zero.  (N, D) -> (N, D)"""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def similarity(queries: FloatArray, gallery: FloatArray) -> FloatArray:
    """Cosine of every query with every gallery row.  (Q, D), (G, D) -> (Q, G)

    Raises:
        ShapeError: if the embedding sizes differ.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ShapeError(f"embeddings of shape {queries.shape} cannot be compared with {gallery.shape}.")
    return np.asarray(queries @ gallery.T, dtype=np.float32)


def top_k(scores: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """The k largest of each row, best first, ties by the lower index.  (Q, G) -> indices (Q, k), scores (Q, k)

    Only what is at least the k-th largest is sorted.
    """
    k = min(k, scores.shape[1])
    least = np.partition(-scores, k - 1, axis=1)[:, k - 1, None] if k else scores[:, :0]  # NaN is last, as in a sort
    if 4 * k > scores.shape[1] or np.isnan(least).any():
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    else:
        order = np.empty((len(scores), k), np.int64)
        for row, (values, kept) in enumerate(zip(scores, -scores <= least, strict=True) if k else ()):
            near = np.flatnonzero(kept)
            order[row] = near[np.argsort(-values[near], kind="stable")[:k]]
    return order.astype(np.int64), np.take_along_axis(scores, order, axis=1)


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)


def best_threshold(matching: FloatArray, others: FloatArray) -> tuple[float, float, float]:
    """The score that separates two kinds best, halfway between two scores.

    Args:
        matching, others: scores of either kind, shapes (P,) and (N,), neither empty.
    Returns:
        Threshold, precision and recall of `score >= threshold`; the one of the highest F1, and of the highest scores
        among equals. Both kinds weigh the same, however many there are.
    """
    scores = np.concatenate([matching, others]).astype(np.float64)
    weights = np.concatenate([np.full(len(matching), 1 / len(matching)), np.zeros(len(others))])
    against = np.concatenate([np.zeros(len(matching)), np.full(len(others), 1 / len(others))])
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    recall, false = np.cumsum(weights[order]), np.cumsum(against[order])
    last = np.append(scores[1:] < scores[:-1], True)  # a threshold cannot part equal scores
    f1 = np.where(last, 2 * recall / (recall + false + 1), -1)
    best = int(f1.argmax())
    below = scores[best + 1] if best + 1 < len(scores) else scores[best] - 1e-3
    precision = recall[best] / (recall[best] + false[best])
    return float((scores[best] + below) / 2), float(min(precision, 1.0)), float(min(recall[best], 1.0))


def positive_ranks(queries: FloatArray, gallery: FloatArray, query_rows: IntArray, gallery_rows: IntArray) -> IntArray:
    """For each query, how many gallery rows rank before its best positive.  -> (Q,)

    A row that ties with the best positive ranks before it unless it is a positive too, so that the recall of a
    collapsed model, whose embeddings are all equal, is 0. Memory grows with Q + G, not with Q x G.

    Args:
        queries: L2-normalised, float32, shape (Q, D).
        gallery: L2-normalised, float32, shape (G, D).
        query_rows, gallery_rows: indices of matching rows, each of shape (P,); every query has at least one.
    Raises:
        ShapeError: if the embedding sizes differ, or a query has no positive.
    """
    order = np.argsort(query_rows, kind="stable")
    query_rows, gallery_rows = query_rows[order], gallery_rows[order]
    ranks = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), _CHUNK):
        scores = similarity(queries[start : start + _CHUNK], gallery)
        positive = np.zeros(scores.shape, dtype=bool)
        low, high = np.searchsorted(query_rows, [start, start + len(scores)])
        positive[query_rows[low:high] - start, gallery_rows[low:high]] = True
        if not positive.any(axis=1).all():
            raise ShapeError("every query needs at least one positive in the gallery.")
        best = np.where(positive, scores, -np.inf).max(axis=1, keepdims=True)
        ranks[start : start + len(scores)] = ((scores >= best) & ~positive).sum(axis=1)
    return ranks


def recall_at_k(ranks: IntArray, k: int) -> float:
    """Fraction of queries with at least one positive among their k nearest.

    Args:
        ranks: from `positive_ranks`, shape (Q,).
        k: at least 1; values above the gallery size count as the gallery size.
    Source: the any-hit convention of Karpathy & Fei-Fei 2015, also used by CLIP.
    """
    return float((ranks < k).mean()) if len(ranks) else 0.0


def bootstrap_means(
    values: Values, groups: IntArray | None = None, seed: int = 0, rounds: int = BOOTSTRAP_ROUNDS
) -> Values:
    """Means of the values in bootstrap samples that draw whole groups.  (Q,), (Q,) -> (rounds,) float64

    A sample is determined by how often each distinct (sum, size) of a group is drawn, so a multinomial draw over
    these replaces drawing the groups one by one: recalls of any number of queries cost the same.

    Args:
        values: one number per query, such as 1 for a hit and 0 for a miss.
        groups: number of the group of each query, such as the image of each caption; by default each is its own.
    Source: the cluster bootstrap of Davison & Hinkley 1997, section 3.8.
    """
    if not len(values):
        return np.zeros(rounds)
    groups = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, 2_000_000 // len(kinds))  # 16 MB of draws at once
    means = []
    for start in range(0, rounds, step):
        drawn = rng.multinomial(len(sums), counts / len(sums), size=min(step, rounds - start))
        total = drawn @ kinds
        means.append(total[:, 0] / total[:, 1])
    return np.concatenate(means)


def recall_interval(
    ranks: IntArray, k: int, groups: IntArray | None = None, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap confidence interval of recall@k (percentiles of 2,000 samples), for queries drawn by group.

    Where every query hits, or none does, all samples are equal; the exact binomial bound (Clopper & Pearson 1934)
    over the groups is returned instead of an interval without width.

    Args:
        ranks: from `positive_ranks`, shape (Q,).
        groups: number of the image of each query, shape (Q,), where an image has several captions: its captions
            succeed and fail together, and an interval over single queries would be too narrow.
    Returns:
        Low and high, fractions in [0, 1]; (0, 1) without queries.
    """
    hits = (ranks < k).astype(np.float64)
    return mean_interval(hits, groups, confidence, seed)


def mean_interval(
    values: Values, groups: IntArray | None = None, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """As `recall_interval`, of the mean of values in [0, 1], such as hits, shape (Q,)."""
    if not len(values):
        return 0.0, 1.0
    outside = (1 - confidence) / 2
    count = len(values) if groups is None else len(np.unique(groups))
    if values.min() == values.max() and values[0] in (0.0, 1.0):
        bound = outside ** (1 / count)
        return (bound, 1.0) if values[0] else (0.0, 1 - bound)
    low, high = np.quantile(bootstrap_means(values, groups, seed), [outside, 1 - outside])
    return float(low), float(high)


def retrieval_scores(
    images: FloatArray, texts: FloatArray, image_rows: IntArray, text_rows: IntArray
) -> dict[str, float]:
    """Recall@1, 5 and 10 in both directions, with the 95 % confidence intervals of recall@1.

    Args:
        images: one row per distinct image, (I, D), L2-normalised.
        texts: one row per distinct normalised caption, (T, D), L2-normalised.
        image_rows, text_rows: for each pair, the row of its image and the row of its caption, (P,).
    Returns:
        `image_to_text_recall@k` and `text_to_image_recall@k` for k in 1, 5, 10, and those of k = 1 with `_low` and
        `_high` after them, over samples that draw images with all their captions.
    """
    ranks = {
        "image_to_text": (positive_ranks(images, texts, image_rows, text_rows), None),
        "text_to_image": (positive_ranks(texts, images, text_rows, image_rows), first_images(image_rows, text_rows)),
    }
    scores = {f"{way}_recall@{k}": recall_at_k(rank, k) for way, (rank, _) in ranks.items() for k in RECALL_AT}
    for way, (rank, groups) in ranks.items():
        scores |= _bounds(f"{way}_recall@1", recall_interval(rank, 1, groups))
    return scores


def first_images(image_rows: IntArray, text_rows: IntArray) -> IntArray:
    """The first image of each caption, which it is drawn with in bootstrap samples.  (P,), (P,) -> (T,)"""
    groups = np.empty(int(text_rows.max(initial=-1)) + 1, np.int64)
    groups[text_rows[::-1]] = image_rows[::-1]
    return groups


def _bounds(key: str, interval: tuple[float, float]) -> dict[str, float]:
    return {f"{key}_low": interval[0], f"{key}_high": interval[1]}


def class_prototypes(embeddings: FloatArray, classes: int) -> FloatArray:
    """Mean of the template embeddings of each class, normalised.  (templates x C, D) -> (C, D)

    Source: prompt ensembling of Radford et al. 2021, section 3.1.4.
    """
    return l2_normalise(embeddings.reshape(-1, classes, embeddings.shape[1]).mean(axis=0))


def zero_shot_scores(images: FloatArray, classes: FloatArray, labels: IntArray) -> dict[str, float]:
    """Top-1 and top-5 accuracy and the mean of the per-class top-1.  (N, D), (C, D), (N,) -> fractions in [0, 1]

    Returns:
        `zero_shot_top1` with its 95 % confidence interval (`_low`, `_high`), `zero_shot_top5` and
        `zero_shot_mean_per_class`.
    """
    hits1, hits5 = np.zeros(len(images), bool), np.zeros(len(images), bool)
    for start in range(0, len(images), _CHUNK):
        rows = slice(start, start + _CHUNK)
        best, _ = top_k(similarity(images[rows], classes), 5)
        hits1[rows] = best[:, 0] == labels[rows]
        hits5[rows] = (best == labels[rows, None]).any(axis=1)
    per_class = [hits1[labels == label].mean() for label in np.unique(labels)]
    return {
        "zero_shot_top1": float(hits1.mean()),
        "zero_shot_top5": float(hits5.mean()),
        "zero_shot_mean_per_class": float(np.mean(per_class)),
        **_bounds("zero_shot_top1", mean_interval(hits1.astype(np.float64))),
    }
