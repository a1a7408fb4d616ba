"""Does a model read more of a caption than its words? Each image against its caption and a hard negative of it.

Shapes: I images, T distinct captions, D embedding size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clip_core.data.dataset import PairSet
from clip_core.data.hard_negatives import KINDS, HardNegatives, Kind, words_of
from clip_core.scoring import FloatArray, mean_interval

CHANCE = 0.5
_MOST = 5_000  # pairs that are tried
_CHUNK = 4096
_TOO_WIDE = 0.25  # an interval of this width decides nothing


@dataclass(frozen=True)
class ProbeScores:
    """Pairs for which a negative of this kind could be made, and the share whose own caption scores above it.

    A tie counts one half, so that a model which does not see the difference is at 50 %. `interval`: 95 %, low and high.
    """

    kind: Kind
    pairs: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class CaptionProbes:
    """The probes of each kind, and whether the order of words makes no difference; None where that cannot be said."""

    kinds: list[ProbeScores]
    bag_of_words: bool | None


def probe_captions(
    encode: Callable[[Sequence[str]], FloatArray], images: FloatArray, texts: FloatArray, pairs: PairSet, seed: int
) -> CaptionProbes:
    """Probe at most 5,000 pairs of the set, drawn by the seed.

    Args:
        encode: embeds distinct captions, (N, D), L2-normalised.
        images, texts: embeddings of the set, (I, D) and (T, D).
    Source: ARO (Yuksekgonul et al. 2023) and SugarCrepe (Hsieh et al. 2023), see clip_core/data/hard_negatives.py.
    """
    random = np.random.default_rng(seed)
    made = HardNegatives(words_of(pairs.captions))
    tried = np.sort(random.permutation(len(pairs))[:_MOST])
    own: dict[int, list[str]] = {}
    for image, caption in zip(pairs.pair_images.tolist(), pairs.pair_captions.tolist(), strict=True):
        own.setdefault(image, []).append(pairs.captions[caption])
    rows: list[tuple[Kind, int, str]] = []
    for kind in KINDS:
        for pair in tried.tolist():
            caption = pairs.captions[pairs.pair_captions[pair]]
            negative = made.make(kind, caption, own[int(pairs.pair_images[pair])], random)
            if negative is not None:
                rows.append((kind, pair, negative))
    if not rows:
        return CaptionProbes([], None)
    distinct = {text: row for row, text in enumerate(dict.fromkeys(text for _, _, text in rows))}
    wrong = encode(list(distinct))
    which = np.array([pair for _, pair, _ in rows])
    image_rows, right_rows = pairs.pair_images[which], pairs.pair_captions[which]
    wrong_rows = np.array([distinct[text] for _, _, text in rows])
    margin = np.empty(len(rows))
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        difference = texts[right_rows[part]] - wrong[wrong_rows[part]]
        margin[part] = np.einsum("nd,nd->n", np.asarray(images[image_rows[part]], np.float32), difference)
    hits = np.where(np.abs(margin) < 1e-6, CHANCE, margin > 0)
    scores = []
    for kind in KINDS:
        mask = np.array([each == kind for each, _, _ in rows])
        if mask.any():
            interval = mean_interval(hits[mask], image_rows[mask], seed=seed)
            scores.append(ProbeScores(kind, int(mask.sum()), float(hits[mask].mean()), interval))
    return CaptionProbes(scores, _bag_of_words(scores))


def _bag_of_words(scores: Sequence[ProbeScores]) -> bool | None:
    """By exchanged words, else by shuffled ones: whether what a model makes of them is chance."""
    by_kind = {each.kind: each for each in scores}
    decisive = by_kind.get("swap") or by_kind.get("order")
    if decisive is None:
        return None
    low, high = decisive.interval
    if low > CHANCE:
        return False
    return None if high - low > _TOO_WIDE else True
