"""What is in a batch: each pair once an epoch, matching pairs in different batches, all from seed and epoch."""

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_core.config import Captions
from clip_core.data.dataset import IntArray, PairSet
from clip_core.errors import UsageError
from clip_core.training.batch_order import BatchOrder, connected
from clip_core.training.ranks import Rank


def pair_set(images: IntArray, captions: IntArray) -> PairSet:
    """Pairs of these images and captions, numbered without gaps."""
    images, pair_images = np.unique(images, return_inverse=True)
    texts, pair_captions = np.unique(captions, return_inverse=True)
    return PairSet([Path(str(i)) for i in images], [str(t) for t in texts], pair_images, pair_captions)


@st.composite
def pair_sets(draw: st.DrawFn) -> PairSet:
    """Up to 60 pairs with few or many images and captions, from all the same to all different."""
    count = draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    images, captions = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    return pair_set(random.integers(images, size=count), random.integers(captions, size=count))


def naive_groups(pairs: PairSet) -> list[set[int]]:
    """Connected pairs, by merging sets."""
    groups: list[set[int]] = []
    for row in range(len(pairs)):
        joined = [
            group
            for group in groups
            if any(
                pairs.pair_images[row] == pairs.pair_images[other]
                or pairs.pair_captions[row] == pairs.pair_captions[other]
                for other in group
            )
        ]
        groups = [group for group in groups if group not in joined] + [{row}.union(*joined)]
    return groups


ALL_OR_SAMPLE: tuple[Captions, ...] = ("all", "sample")
some = settings(max_examples=150, deadline=None)


@some
@given(pair_sets(), st.integers(1, 40), st.integers(0, 5), st.integers(0, 100))
def test_an_epoch_has_each_pair_once_but_the_leftover(pairs: PairSet, size: int, seed: int, epoch: int) -> None:
    order = BatchOrder(pairs, batch_size=size, seed=seed)
    batches = order(epoch)
    assert batches.shape == (len(pairs) // min(size, len(pairs)), min(size, len(pairs)))
    assert sorted([*batches.ravel(), *order.leftover(epoch)]) == list(range(len(pairs)))


@some
@given(pair_sets(), st.integers(1, 40), st.integers(0, 5), st.integers(0, 100))
def test_sampled_an_epoch_has_each_image_once(pairs: PairSet, size: int, seed: int, epoch: int) -> None:
    order = BatchOrder(pairs, batch_size=size, seed=seed, captions="sample")
    images = pairs.pair_images[order(epoch).ravel()]
    assert len(set(images)) == len(images) == len(pairs.images) // order.batch_size * order.batch_size


@some
@given(pair_sets(), st.integers(1, 40), st.integers(0, 5), st.sampled_from(ALL_OR_SAMPLE))
def test_the_batches_depend_on_seed_and_epoch_alone(pairs: PairSet, size: int, seed: int, how: Captions) -> None:
    one, other = (BatchOrder(pairs, batch_size=size, seed=seed, captions=how) for _ in range(2))
    forwards = [one(epoch) for epoch in range(4)]
    backwards = [other(epoch) for epoch in (3, 2, 1, 0)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_seeds_and_epochs_give_different_batches() -> None:
    pairs = pair_set(np.arange(100), np.arange(100))
    orders = [BatchOrder(pairs, batch_size=10, seed=seed)(epoch) for seed in range(3) for epoch in range(3)]
    assert len({order.tobytes() for order in orders}) == 9


@some
@given(pair_sets(), st.integers(1, 40), st.integers(0, 5), st.integers(0, 20))
def test_no_batch_holds_two_of_a_connected_group_that_has_no_more_than_there_are_batches(
    pairs: PairSet, size: int, seed: int, epoch: int
) -> None:
    order = BatchOrder(pairs, batch_size=size, seed=seed)
    small = [group for group in naive_groups(pairs) if len(group) <= order.steps]
    for batch in order(epoch):
        assert all(len(group.intersection(batch.tolist())) <= 1 for group in small)


@some
@given(pair_sets(), st.integers(1, 40), st.integers(0, 5), st.integers(0, 20))
def test_sampled_a_caption_is_spread_evenly_over_the_batches(pairs: PairSet, size: int, seed: int, epoch: int) -> None:
    order = BatchOrder(pairs, batch_size=size, seed=seed, captions="sample")
    captions = pairs.pair_captions[order(epoch)]
    shares = np.stack([np.bincount(batch, minlength=len(pairs.captions)) for batch in captions])
    assert (shares.max(axis=0) - shares.min(axis=0)).max() <= 1


@some
@given(pair_sets())
def test_connected_pairs_have_one_number_and_others_another(pairs: PairSet) -> None:
    numbers = connected(pairs.pair_images, pairs.pair_captions)
    groups = naive_groups(pairs)
    assert all(len({int(numbers[row]) for row in group}) == 1 for group in groups)
    assert len(set(numbers)) == len(groups)


def test_a_long_chain_of_matches_is_one_connected_group() -> None:
    links = np.random.default_rng(0).permutation(100_001)
    at = np.arange(100_000)
    assert not connected(links[at // 2], links[(at + 1) // 2]).any()


def test_two_captions_of_an_image_are_never_in_one_batch() -> None:
    pairs = pair_set(np.repeat(np.arange(200), 2), np.arange(400))
    order = BatchOrder(pairs, batch_size=128, seed=0)
    for epoch in range(20):
        assert all(len(set(pairs.pair_images[batch])) == 128 for batch in order(epoch))


def test_an_image_comes_back_after_any_number_of_batches_not_in_the_next() -> None:
    pairs = pair_set(np.repeat(np.arange(200), 2), np.arange(400))
    batch_of = np.empty(400, dtype=int)
    for number, batch in enumerate(BatchOrder(pairs, batch_size=10, seed=0)(0)):
        batch_of[batch] = number
    assert np.abs(batch_of[::2] - batch_of[1::2]).mean() == pytest.approx(41 / 3, rel=0.2)  # of two drawn from 40


def test_a_batch_has_an_even_share_of_each_class() -> None:
    classes = np.repeat(np.arange(6), (473, 406, 388, 328, 322, 106))
    order = BatchOrder(pair_set(np.arange(2023), classes), batch_size=64, seed=0)
    for epoch in range(5):
        shares = np.stack([np.bincount(classes[batch], minlength=6) for batch in order(epoch)])
        assert (shares.max(axis=0) - shares.min(axis=0)).max() <= 1


def test_where_one_caption_connects_all_the_captions_of_an_image_are_still_apart() -> None:
    captions = np.arange(2000)
    captions[::5] = 0  # one of each image's, so that all are connected
    pairs = pair_set(np.repeat(np.arange(400), 5), captions)
    own = pairs.pair_captions != 0
    for batch in BatchOrder(pairs, batch_size=100, seed=0)(0):
        images = pairs.pair_images[batch][own[batch]]
        assert len(set(images)) == len(images)
        assert np.count_nonzero(~own[batch]) == 20


@some
@given(pair_sets(), st.integers(1, 40), st.integers(0, 5), st.sampled_from(ALL_OR_SAMPLE))
def test_all_are_left_over_as_often(pairs: PairSet, size: int, seed: int, how: Captions) -> None:
    order = BatchOrder(pairs, batch_size=size, seed=seed, captions=how)
    waits = np.zeros(order.per_epoch, dtype=int)
    for epoch in range(30):
        waits[order.leftover(epoch)] += 1
        assert waits.max() - waits.min() <= 1


@some
@given(pair_sets(), st.integers(0, 5), st.integers(0, 20))
def test_sampling_takes_every_caption_once_before_any_again(pairs: PairSet, seed: int, cycle: int) -> None:
    order = BatchOrder(pairs, batch_size=1, seed=seed, captions="sample")
    for count in {int(c) for c in np.bincount(pairs.pair_images)}:
        drawn = np.concatenate([order(epoch).ravel() for epoch in range(cycle * count, (cycle + 1) * count)])
        theirs = np.bincount(pairs.pair_images)[pairs.pair_images[drawn]] == count
        assert (
            sorted(drawn[theirs]) == np.flatnonzero(np.bincount(pairs.pair_images)[pairs.pair_images] == count).tolist()
        )


def test_captions_are_sampled_for_each_image_by_itself() -> None:
    order = BatchOrder(
        pair_set(np.repeat(np.arange(1000), 2), np.arange(2000)), batch_size=1, seed=0, captions="sample"
    )
    first = [np.sort(order(epoch).ravel()) % 2 for epoch in (0, 2, 4)]
    for one, other in pairwise(first):
        assert 400 < np.count_nonzero(one == other) < 600
    assert all(400 < row.sum() < 600 for row in first)


def test_any_two_pairs_that_do_not_match_share_a_batch_as_often_as_by_chance() -> None:
    order = BatchOrder(pair_set(np.repeat(np.arange(10), 2), np.arange(20)), batch_size=5, seed=0)
    met = np.zeros((20, 20))
    for epoch in range(3000):
        for batch in order(epoch):
            met[np.ix_(batch, batch)] += 1
    others = met[~np.kron(np.eye(10, dtype=bool), np.ones((2, 2), dtype=bool))] / 3000
    assert others.mean() == pytest.approx(4 / 18)
    assert np.abs(others - 4 / 18).max() < 0.04  # five standard deviations


def test_the_order_of_a_million_pairs_takes_seconds() -> None:
    pairs = PairSet([], [], np.repeat(np.arange(200_000), 5), np.arange(1_000_000))
    started = time.perf_counter()
    BatchOrder(pairs, batch_size=128, seed=0)(0)
    assert time.perf_counter() - started < 10  # 0.7 s, where the machine has nothing else to do


@some
@given(pair_sets(), st.integers(4, 40), st.sampled_from([2, 4]), st.integers(0, 20), st.sampled_from(ALL_OR_SAMPLE))
def test_the_parts_of_the_ranks_are_the_batch_of_one_process(
    pairs: PairSet, size: int, ranks: int, epoch: int, how: Captions
) -> None:
    size = size // ranks * ranks
    whole = BatchOrder(pairs, batch_size=size, seed=3, captions=how)
    if whole.per_epoch < size:
        return  # the one batch of so few pairs is cut to a multiple of the ranks
    parts = [
        BatchOrder(pairs, batch_size=size, seed=3, captions=how, rank=Rank(number, ranks))(epoch)
        for number in range(ranks)
    ]
    assert {part.shape for part in parts} == {(whole.steps, size // ranks)}
    assert np.array_equal(np.concatenate(parts, axis=1), whole(epoch))


def test_ranks_and_epochs_have_different_batches() -> None:
    pairs = pair_set(np.arange(100), np.arange(100))
    orders = [BatchOrder(pairs, batch_size=20, seed=0, rank=Rank(number, 4)) for number in range(4)]
    batches = [order(epoch) for order in orders for epoch in range(3)]
    assert len({batch.tobytes() for batch in batches}) == 12
    for epoch in range(3):
        assert len(np.unique(np.concatenate([order(epoch).ravel() for order in orders]))) == 100


def test_a_batch_is_a_multiple_of_the_ranks_and_too_few_pairs_are_refused() -> None:
    pairs = pair_set(np.arange(7), np.arange(7))
    order = BatchOrder(pairs, batch_size=10, seed=0, rank=Rank(1, 3))
    assert (order.batch_size, order(0).shape) == (6, (1, 2))
    with pytest.raises(UsageError, match=r"there are 7 pairs, fewer than the 8 processes; start fewer of them"):
        BatchOrder(pairs, batch_size=10, seed=0, rank=Rank(0, 8))
    with pytest.raises(UsageError, match="the batch size is 2, fewer than the 3 processes"):
        BatchOrder(pairs, batch_size=2, seed=0, rank=Rank(0, 3))
