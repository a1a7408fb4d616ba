"""A model that reads captions as bags of words is recognised."""

from collections.abc import Sequence

import numpy as np

from clip_core.data.dataset import PairSet
from clip_core.data.pairs import Pair
from clip_core.inference.evaluation.caption_probes import probe_captions
from clip_core.scoring import FloatArray, l2_normalise

COLOURS, SHAPES = ("red", "blue", "green", "yellow", "black"), ("circle", "square", "star", "heart")
CAPTIONS = [f"a {a} {s} above a {b} {t}" for a in COLOURS for b in COLOURS for s in SHAPES for t in SHAPES if a != b]
WORDS = {word: row for row, word in enumerate(sorted({word for caption in CAPTIONS for word in caption.split()}))}


def bag_of_words(captions: Sequence[str]) -> FloatArray:
    """The mean of one direction for each word."""
    counts = np.zeros((len(captions), len(WORDS)), np.float32)
    for row, caption in enumerate(captions):
        for word in caption.split():
            counts[row, WORDS[word]] += 1
    return l2_normalise(counts)


def in_order(captions: Sequence[str]) -> FloatArray:
    """A direction for each word at each place."""
    counts = np.zeros((len(captions), 8, len(WORDS)), np.float32)
    for row, caption in enumerate(captions):
        for place, word in enumerate(caption.split()):
            counts[row, place, WORDS[word]] = 1
    return l2_normalise(counts.reshape(len(captions), -1))


def pairs() -> PairSet:
    return PairSet.from_pairs([Pair(f"{n}.png", caption, n) for n, caption in enumerate(CAPTIONS, start=1)])


def test_a_bag_of_words_is_at_chance_where_words_move_and_not_where_one_is_another() -> None:
    texts = bag_of_words(CAPTIONS)
    found = probe_captions(bag_of_words, texts, texts, pairs(), seed=0)
    accuracy = {each.kind: each.accuracy for each in found.kinds}
    assert accuracy["order"] == accuracy["swap"] == 0.5
    assert accuracy["replace"] == 1.0
    assert found.bag_of_words is True


def test_a_model_that_knows_the_order_is_not_taken_for_one() -> None:
    texts = in_order(CAPTIONS)
    found = probe_captions(in_order, texts, texts, pairs(), seed=0)
    assert {each.kind: each.accuracy for each in found.kinds} == {"order": 1.0, "swap": 1.0, "replace": 1.0}
    assert all(each.pairs > 0.9 * len(CAPTIONS) for each in found.kinds)
    assert found.bag_of_words is False


def test_few_captions_decide_nothing() -> None:
    few = PairSet.from_pairs([Pair(str(n), caption, n) for n, caption in enumerate(CAPTIONS[:3], start=1)])
    rng = np.random.default_rng(0)

    def random(captions: Sequence[str]) -> FloatArray:
        return l2_normalise(rng.normal(size=(len(captions), 8)).astype(np.float32))

    texts = random(CAPTIONS[:3])
    assert probe_captions(random, -texts, texts, few, seed=0).bag_of_words in (None, False)
    nothing = PairSet.from_pairs([Pair("1", "!?", 1)])
    assert probe_captions(random, texts[:1], texts[:1], nothing, seed=0).kinds == []
