"""Which pairs stand in which batch of an epoch, from the seed and the epoch alone.

Shapes: P pairs, N of them an epoch's, K batches of B pairs.
"""

import numpy as np

from clip_core.config import Captions
from clip_core.data.dataset import IntArray, PairSet

# What a draw is for: draws for different ends are independent.
_DEALING, _CAPTION, _WAITING = 1, 2, 3


class Order:
    """The batches of any epoch, composed so that pairs that match meet in as few of them as can be.

    The pairs are dealt like cards: sorted so that matching pairs lie together, then given out in turn, one to each
    batch. What lies together within K cards never meets. As a pair matches others by its image and by its caption,
    two groupings say what lies together:

    - all that is connected, over images and captions in turn. No batch holds two pairs of a connected group that
      has no more pairs than there are batches.
    - within a larger connected group, the larger of a pair's two groups (same image, same caption). Each batch gets
      an even share of these, as of the captions where they are classes; who of them meet by their other group is
      left to chance.

    Everything else is random: which groups lie beside each other, the pairs within a group, the order of the batches.
    """

    def __init__(self, pairs: PairSet, *, batch_size: int, seed: int, captions: Captions = "all") -> None:
        self.seed = seed
        self.per_epoch = pairs_an_epoch(pairs, captions)
        self.batch_size = min(batch_size, self.per_epoch)  # what is smaller than a batch is one batch
        self.steps = self.per_epoch // self.batch_size
        alone = np.arange(len(pairs))
        # An epoch takes one of each: of the pairs as they are, or of an image's. In the latter no image can meet
        # itself, and only captions are left to keep apart.
        one_of, images = (alone, pairs.pair_images) if captions == "all" else (pairs.pair_images, alone)
        counts = np.bincount(one_of)
        self._counts = counts[counts > 0]
        self._first = np.cumsum(self._counts) - self._counts
        self._members = np.argsort(one_of, kind="stable")
        self._connected = connected(images, pairs.pair_captions)
        self._larger = larger_group(images, pairs.pair_captions)
        self._turns = self._random(0, _WAITING).permutation(self.per_epoch)

    def __call__(self, epoch: int) -> IntArray:
        """Rows of the pairs in each batch, (K, B)."""
        random = self._random(epoch, _DEALING)
        rows = random.permutation(np.delete(self._chosen(epoch), self.waiting(epoch)))
        connection, larger = (random.permutation(g.max() + 1)[g] for g in (self._connected, self._larger))
        lies_with = connection * (larger.max() + 1) + larger
        sorted_rows = rows[np.argsort(lies_with[rows], kind="stable")]
        return random.permutation(sorted_rows.reshape(self.batch_size, self.steps).T)

    def waiting(self, epoch: int) -> IntArray:
        """Who does not fit into the batches of an epoch: the next few in a round of all, so that all wait as often."""
        few = self.per_epoch - self.steps * self.batch_size
        return self._turns[np.arange(epoch * few, (epoch + 1) * few) % self.per_epoch]

    def _chosen(self, epoch: int) -> IntArray:
        """The pairs of an epoch: each, or one of each image's, drawn anew after all of these had a turn.  (N,)"""
        start = np.zeros_like(self._counts)
        for count in np.unique(self._counts):
            drawn = self._random(epoch // int(count), _CAPTION).integers(count, size=len(start))
            start = np.where(self._counts == count, drawn, start)
        return self._members[self._first + (start + epoch) % self._counts]

    def _random(self, epoch: int, what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, what])


def pairs_an_epoch(pairs: PairSet, captions: Captions) -> int:
    """All pairs, or one for each image."""
    return len(pairs) if captions == "all" else int(np.count_nonzero(np.bincount(pairs.pair_images)))


def connected(images: IntArray, captions: IntArray) -> IntArray:
    """A number for each pair, the same for pairs that a chain of matching pairs connects.  (P,), (P,) -> (P,)"""
    label = np.arange(len(images))
    while True:
        before = label
        for ids in (images, captions):
            least = np.full(ids.max() + 1, len(ids))
            np.minimum.at(least, ids, label)
            label = least[ids]
        label = label[label]  # a label is a pair of the same group, whose own may be lower: long chains halve
        if np.array_equal(label, before):
            return label


def larger_group(images: IntArray, captions: IntArray) -> IntArray:
    """A number for the larger of a pair's two groups, its image's or its caption's.  (P,), (P,) -> (P,)"""
    of_image, of_caption = (np.bincount(ids)[ids] for ids in (images, captions))
    return np.where(of_image >= of_caption, images, images.max() + 1 + captions)
