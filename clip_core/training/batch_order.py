"""Which pairs are in which batch of an epoch, from the seed and the epoch alone.

Shapes: P pairs, N of them in an epoch, K batches of B pairs.
"""

import numpy as np

from clip_core.config import Captions
from clip_core.data.dataset import IntArray, PairSet
from clip_core.errors import UsageError
from clip_core.training.ranks import Rank

# One random stream each, so that draws for one purpose do not depend on those for another.
_SHUFFLE, _CAPTION, _LEFTOVER = 1, 2, 3
_ALONE = Rank()


class BatchOrder:
    """The batches of any epoch, composed so that matching pairs are in the same batch as rarely as possible.

    The pairs are sorted so that matching pairs are neighbours, then assigned to the batches in turn. Neighbours less
    than K apart are never in the same batch. As a pair matches others by its image and by its caption, two groupings
    give the neighbours:

    - connected groups, over images and captions in turn. No batch has two pairs of a connected group of at most K
      pairs.
    - within a larger connected group, the larger of a pair's two groups (same image, same caption). Each batch gets
      an even share of these, as of the captions where they are classes; matches by the other group are left to chance.

    Everything else is random: the order of the groups, of the pairs within a group, and of the batches.

    Args:
        batch_size: B, of all ranks together; fewer where an epoch has fewer pairs or ranks do not divide it.
        rank: whose part of each batch is returned; every rank computes the same batches.
    Raises:
        UsageError: if an epoch has fewer pairs than there are ranks.
    """

    def __init__(
        self, pairs: PairSet, *, batch_size: int, seed: int, captions: Captions = "all", rank: Rank = _ALONE
    ) -> None:
        self.seed, self.rank = seed, rank
        self.per_epoch = pairs_an_epoch(pairs, captions)
        self.batch_size = min(batch_size, self.per_epoch) // rank.size * rank.size
        if not self.batch_size:
            fewer = f"the batch size is {batch_size}" if batch_size < rank.size else f"there are {self.per_epoch} pairs"
            raise UsageError(f"{fewer}, fewer than the {rank.size} processes; start fewer of them.")
        self.steps = self.per_epoch // self.batch_size
        alone = np.arange(len(pairs))
        # An epoch has one pair of each group: every pair is its own group, or the pairs of an image are one. In the
        # latter case no image is there twice, and captions alone are left to keep apart.
        one_of, images = (alone, pairs.pair_images) if captions == "all" else (pairs.pair_images, alone)
        counts = np.bincount(one_of)
        self._counts = counts[counts > 0]
        self._first = np.cumsum(self._counts) - self._counts
        self._members = np.argsort(one_of, kind="stable")
        self._connected = connected(images, pairs.pair_captions)
        self._larger = larger_group(images, pairs.pair_captions)
        self._rounds = self._random(0, _LEFTOVER).permutation(self.per_epoch)

    def __call__(self, epoch: int) -> IntArray:
        """Rows of the pairs of this rank in each batch, (K, B / ranks)."""
        return self.batches(epoch)[:, self.rank.part(self.batch_size)]

    def batches(self, epoch: int) -> IntArray:
        """Rows of the pairs of all ranks in each batch, (K, B)."""
        random = self._random(epoch, _SHUFFLE)
        rows = random.permutation(np.delete(self._chosen(epoch), self.leftover(epoch)))
        connection, larger = (random.permutation(g.max() + 1)[g] for g in (self._connected, self._larger))
        group = connection * (larger.max() + 1) + larger
        sorted_rows = rows[np.argsort(group[rows], kind="stable")]
        return random.permutation(sorted_rows.reshape(self.batch_size, self.steps).T)

    def leftover(self, epoch: int) -> IntArray:
        """The pairs that do not fill a batch in an epoch: the next ones in a round over all pairs."""
        few = self.per_epoch - self.steps * self.batch_size
        return self._rounds[np.arange(epoch * few, (epoch + 1) * few) % self.per_epoch]

    def _chosen(self, epoch: int) -> IntArray:
        """The pairs of an epoch: all, or one of each image, drawn again once each of its pairs had its turn.  (N,)"""
        start = np.zeros_like(self._counts)
        for count in np.unique(self._counts):
            drawn = self._random(epoch // int(count), _CAPTION).integers(count, size=len(start))
            start = np.where(self._counts == count, drawn, start)
        return self._members[self._first + (start + epoch) % self._counts]

    def _random(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, stream])


def pairs_an_epoch(pairs: PairSet, captions: Captions) -> int:
    """Pairs in an epoch: all, or one for each image."""
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
