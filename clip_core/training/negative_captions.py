"""A hard negative caption for each pair of a batch, and which images it is a negative of.

Shapes: B pairs of the batch of all ranks, P pairs of the run.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip_core.data.dataset import IntArray, PairSet
from clip_core.data.hard_negatives import HardNegatives
from clip_core.text import normalise_caption

_NEGATIVES = 2  # of the seeds, so that these are drawn apart


class BatchNegatives(NamedTuple):
    """Hard negatives of the pairs of a batch, in their order.

    not_negative: bool (B, B), whether the image of a row has the caption of a column after all, or that column has
        none: there `captions` repeats the pair's own.
    """

    captions: list[str]
    not_negative: NDArray[np.bool_]


class NegativeCaptions:
    """Draws hard negatives by the seed, the step and the place in the batch: the same whichever rank draws them."""

    def __init__(self, pairs: PairSet, seed: int) -> None:
        self._pairs, self._seed = pairs, seed
        self._made = HardNegatives(pairs.captions)
        self._number = {normalise_caption(caption): number for number, caption in enumerate(pairs.captions)}
        self._known = np.unique(self._keys(pairs.pair_images, pairs.pair_captions))
        order = np.argsort(pairs.pair_images, kind="stable")
        bounds = np.searchsorted(pairs.pair_images[order], np.arange(len(pairs.images) + 1))
        self._captions_by_image = pairs.pair_captions[order]
        self._bounds = bounds

    def _keys(self, images: IntArray, captions: IntArray) -> IntArray:
        return images * (len(self._pairs.captions) + 1) + captions

    def of(self, rows: IntArray, step: int) -> BatchNegatives:
        """The hard negatives of these pairs.  (B,)"""
        images, numbers = self._pairs.pair_images[rows], self._pairs.pair_captions[rows]
        texts: list[str] = []
        drawn = np.full(len(rows), -1)  # the caption's number where the set has it, -2 where there is no negative
        for place, (image, number) in enumerate(zip(images, numbers, strict=True)):
            caption = self._pairs.captions[number]
            text = self._draw(caption, int(image), np.random.default_rng([self._seed, step, place, _NEGATIVES]))
            texts.append(caption if text is None else text)
            drawn[place] = -2 if text is None else self._number.get(normalise_caption(text), -1)
        right = np.isin(self._keys(images[:, None], np.maximum(drawn, 0)[None]), self._known) & (drawn >= 0)
        return BatchNegatives(texts, right | (drawn == -2))

    def _draw(self, caption: str, image: int, random: np.random.Generator) -> str | None:
        """A swapped or replaced caption, else a shuffled one, which is easier."""
        own = [self._pairs.captions[n] for n in self._captions_by_image[self._bounds[image] : self._bounds[image + 1]]]
        found = self._made.draw(caption, own, random, ("swap", "replace"))
        found = found or self._made.draw(caption, own, random, ("order",))
        return None if found is None else found.caption

    def share(self) -> float:
        """Share of the captions that a negative was made for, of at most the first 1,000."""
        tried = self._pairs.captions[:1000]
        random = np.random.default_rng(self._seed)
        return sum(self._made.draw(caption, (), random) is not None for caption in tried) / max(len(tried), 1)
