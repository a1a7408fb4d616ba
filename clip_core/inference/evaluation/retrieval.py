"""Retrieval in both directions: recall@k with confidence intervals, mean average precision, median rank.

Shapes: Q queries, G gallery rows, P pairs, D embedding size.
"""

from dataclasses import dataclass

import numpy as np

from clip_core.config import RECALL_AT
from clip_core.data.dataset import PairSet
from clip_core.inference.evaluation.classification import precision_of
from clip_core.scoring import (
    FloatArray,
    IntArray,
    Values,
    first_images,
    positive_ranks,
    recall_at_k,
    recall_interval,
    similarity,
)

_CHUNK = 256  # rows of the similarity matrix in memory at once


@dataclass(frozen=True)
class Direction:
    """One direction of retrieval. Fractions in [0, 1]; `intervals`: low and high of 95 % for each k."""

    queries: int
    gallery: int
    recall: dict[int, float]
    intervals: dict[int, tuple[float, float]]
    mean_average_precision: float
    median_rank: float  # of the best positive; 1 is first


@dataclass(frozen=True)
class Retrieval:
    image_to_text: Direction
    text_to_image: Direction


@dataclass(frozen=True)
class Ranks:
    """For each query, how many rows rank before its best positive (see `positive_ranks`), and its image."""

    image_to_text: IntArray  # (I,)
    text_to_image: IntArray  # (T,)
    caption_images: IntArray  # (T,) the first image of each caption: the group that it is drawn with


def retrieve(images: FloatArray, texts: FloatArray, pairs: PairSet, seed: int) -> tuple[Retrieval, Ranks]:
    """Both directions over distinct images and distinct captions.  (I, D), (T, D)

    An image and a caption match if a pair has both. Intervals draw images, with all their captions.
    """
    images = np.asarray(images)
    to_text = positive_ranks(images, texts, pairs.pair_images, pairs.pair_captions)
    to_image = positive_ranks(texts, images, pairs.pair_captions, pairs.pair_images)
    groups = first_images(pairs.pair_images, pairs.pair_captions)
    precisions = (
        _average_precision(images, texts, pairs.pair_images, pairs.pair_captions),
        _average_precision(texts, images, pairs.pair_captions, pairs.pair_images),
    )
    found = Retrieval(
        _direction(to_text, len(texts), np.arange(len(images)), precisions[0], seed),
        _direction(to_image, len(images), groups, precisions[1], seed),
    )
    return found, Ranks(to_text, to_image, groups)


def _direction(ranks: IntArray, gallery: int, groups: IntArray, precisions: Values, seed: int) -> Direction:
    return Direction(
        len(ranks),
        gallery,
        {k: recall_at_k(ranks, k) for k in RECALL_AT},
        {k: recall_interval(ranks, k, groups, seed=seed) for k in RECALL_AT},
        float(precisions.mean()),
        float(np.median(ranks)) + 1,
    )


def _average_precision(
    queries: FloatArray, gallery: FloatArray, query_rows: IntArray, gallery_rows: IntArray
) -> Values:
    """Average precision of each query over the whole gallery.  -> (Q,)"""
    pairs = np.unique(np.stack([query_rows, gallery_rows], axis=1), axis=0)
    bounds = np.searchsorted(pairs[:, 0], np.arange(len(queries) + 1))
    answer = np.empty(len(queries))
    for start in range(0, len(queries), _CHUNK):
        for row, scores in enumerate(similarity(queries[start : start + _CHUNK], gallery), start):
            answer[row] = precision_of(scores, pairs[bounds[row] : bounds[row + 1], 1])
    return answer
