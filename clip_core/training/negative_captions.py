"""A hard negative caption for each pair of a batch, and which images it is a negative of.

Of indexed pairs, of streamed ones, and as features of a frozen text encoder.

Shapes: B pairs of the batch of all ranks, b of this rank, C distinct captions of the run, K negatives of a caption, F
features.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip_core.data.dataset import IntArray, PairSet
from clip_core.data.feature_cache import content_key
from clip_core.data.hard_negatives import HardNegatives, Words, words_of
from clip_core.data.progress import DecodeProgress, Progress
from clip_core.data.stream.samples import StreamedPair, caption_id
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import UsageError
from clip_core.scoring import FloatArray
from clip_core.text import normalise_caption
from clip_core.training.frozen_features import CaptionFeatures

_NEGATIVES = 2  # of the seeds, so that these are drawn apart
_TRIED = 1_000  # captions
_REMEMBERED = 100_000  # captions whose part within the context is known
_EACH = 4  # K, of which a step draws one
_MOST = 1_000_000  # features of negatives; with more captions than that, one each
_TOGETHER = 5_000  # captions whose negatives are in memory at a time
_UNKNOWN, _NONE = -1, -2  # numbers of negatives: no caption of the set; none can be made


class BatchNegatives(NamedTuple):
    """Hard negatives of the pairs of a batch, in their order.

    captions: of the pairs of this rank, (b,); one without a negative has its own caption again.
    not_negative: bool (b, B), whether the image of a row has the caption of a column after all, or that column has
        none.
    features: float32 (b, F), in place of captions where the text encoder is frozen.
    """

    captions: list[str]
    not_negative: NDArray[np.bool_]
    features: FloatArray | None = None


class Maker:
    """Makes hard negatives that differ from their captions in what the text tower reads of them.

    Args:
        words: that replace others.
    """

    def __init__(self, words: Words, tokenizer: Tokenizer) -> None:
        self._made = HardNegatives(words)
        self._read = lru_cache(_REMEMBERED)(tokenizer.untruncated)

    def __call__(self, caption: str, own: Sequence[str], random: np.random.Generator) -> str | None:
        """A swapped or replaced caption, else a shuffled one, which is easier; None where none can be made.

        Args:
            own: captions of the same image, none of which it may be.
        """
        read = self._read(caption)
        made = self._made.draw(read, own, random, ("swap", "replace"))
        made = made or self._made.draw(read, own, random, ("order",))
        if made is None:
            return None
        text = made.caption + caption[len(read) :]
        truncated = len(read) < len(caption)
        return None if truncated and normalise_caption(text) in map(normalise_caption, own) else text

    def share(self, captions: Sequence[str]) -> float:
        """Share of the captions that a negative can be made for, of at most 1,000 of them.

        Raises:
            UsageError: if there is none.
        """
        tried = captions[:: max(len(captions) // _TRIED, 1)]
        random = np.random.default_rng(0)
        found = sum(self(caption, (), random) is not None for caption in tried)
        if not found:
            raise UsageError(
                "--hard-negatives: no wrong caption can be made, as no caption has a word of three letters that "
                "another could replace; leave it out."
            )
        return found / len(tried)


class KnownCaptions:
    """Which captions each image of the run has."""

    def __init__(self, pairs: PairSet) -> None:
        self._pairs = pairs
        self._number = {normalise_caption(caption): number for number, caption in enumerate(pairs.captions)}
        self._known = np.unique(self._keys(pairs.pair_images, pairs.pair_captions))
        order = np.argsort(pairs.pair_images, kind="stable")
        self._bounds = np.searchsorted(pairs.pair_images[order], np.arange(len(pairs.images) + 1))
        self._captions_by_image = pairs.pair_captions[order]

    def _keys(self, images: IntArray, captions: IntArray) -> IntArray:
        return images * (len(self._pairs.captions) + 1) + captions

    def number(self, text: str) -> int:
        """The number of a caption, however it is spelt; -1 for one that the run does not have."""
        return self._number.get(normalise_caption(text), _UNKNOWN)

    def of(self, image: int) -> list[str]:
        """The captions of an image."""
        numbers = self._captions_by_image[self._bounds[image] : self._bounds[image + 1]]
        return [self._pairs.captions[number] for number in numbers]

    def not_negative(self, images: IntArray, numbers: IntArray) -> NDArray[np.bool_]:
        """Whether each image has each caption, or that is none.  (b,), (B,) -> (b, B)"""
        found = np.zeros((len(images), len(numbers)), np.bool_)
        columns = np.flatnonzero(numbers >= 0)
        keys = self._keys(images[:, None], numbers[columns])
        places = np.minimum(np.searchsorted(self._known, keys), len(self._known) - 1)
        found[:, columns] = self._known[places] == keys
        found[:, numbers == _NONE] = True
        return found


class NegativeCaptions:
    """Draws hard negatives by the seed, the step and the place in the batch: the same whichever rank draws them."""

    def __init__(self, pairs: PairSet, seed: int, tokenizer: Tokenizer) -> None:
        self._pairs, self._seed = pairs, seed
        self._make = Maker(words_of(pairs.captions), tokenizer)
        self._known = KnownCaptions(pairs)

    def of(self, rows: IntArray, step: int, own: slice) -> BatchNegatives:
        """The hard negatives of a rank's `own` among these pairs of all ranks.  (B,)"""
        images, captions = self._pairs.pair_images[rows], self._pairs.pair_captions[rows]
        texts: list[str] = []
        numbers = np.empty(len(rows), dtype=np.int64)
        for place, (image, number) in enumerate(zip(images.tolist(), captions.tolist(), strict=True)):
            caption = self._pairs.captions[number]
            random = np.random.default_rng([self._seed, step, place, _NEGATIVES])
            text = self._make(caption, self._known.of(image), random)
            texts.append(caption if text is None else text)
            numbers[place] = _NONE if text is None else self._known.number(text)
        return BatchNegatives(texts[own], self._known.not_negative(images[own], numbers))

    @property
    def line(self) -> str:
        """How many captions have one.

        Raises:
            UsageError: if none has.
        """
        return f"{self._make.share(self._pairs.captions):.0%} of the captions"


class NegativeFeatures:
    """Hard negatives as features of a frozen text encoder, which are computed once: a few for each caption, of which a
    step draws one.

    They depend on the captions alone, so that runs of another seed find them in the cache, from which they are read.

    Raises:
        UsageError: if none can be made.
    """

    def __init__(self, pairs: PairSet, features: CaptionFeatures, seed: int, say: Callable[[str], None]) -> None:
        self._pairs, self._features, self._seed = pairs, features, seed
        self._known = KnownCaptions(pairs)
        make, count = Maker(words_of(pairs.captions), features.tokenizer), len(pairs.captions)
        make.share(pairs.captions)
        self._each = min(max(_MOST // count, 1), _EACH)
        self._rows = np.empty((count, self._each), dtype=np.int64)  # of the cache
        self._numbers = np.full((count, self._each), _NONE, dtype=np.int64)  # of the negatives that are captions too
        self._counts = np.zeros(count, dtype=np.int64)  # of the negatives of a caption
        image_of = np.zeros(count, dtype=np.int64)  # one of its images, whose captions are avoided
        image_of[pairs.pair_captions] = pairs.pair_images
        with DecodeProgress(say, "encoded the hard negatives of", "caption") as progress:
            for start in range(0, count, _TOGETHER):
                some = range(start, min(start + _TOGETHER, count))
                self._compute(make, some, image_of, partial(_of_all, progress, some, count))
        self.line = (
            f"{np.mean(self._counts > 0):.0%} of the captions, up to {self._each} each, whose features are computed "
            f"once ({self._counts.sum() * features.row_bytes / 1e6:,.1f} MB in the cache on the disk, from which they "
            "are read)"
        )

    def _compute(self, make: Maker, some: range, image_of: IntArray, progress: Progress) -> None:
        """The negatives of some captions, and their features."""
        texts = [[self._pairs.captions[n], *self._drawn(make, n, int(image_of[n]))] for n in some]
        rows = self._features.stored([text for of_one in texts for text in of_one], progress)
        place = 0
        for number, of_one in zip(some, texts, strict=True):
            own, *others = rows[place : place + len(of_one)]
            place += len(of_one)
            # What differs in words alone that the encoder does not know is no negative.
            kept = [(row, text) for row, text in zip(others, of_one[1:], strict=True) if row != own]
            self._rows[number] = own
            self._rows[number, : len(kept)] = [row for row, _ in kept]
            self._numbers[number, : len(kept)] = [self._known.number(text) for _, text in kept]
            self._counts[number] = len(kept)

    def _drawn(self, make: Maker, number: int, image: int) -> list[str]:
        """Up to K different negatives of a caption."""
        caption = self._pairs.captions[number]
        seed = content_key(normalise_caption(caption).encode("utf-8", "surrogateescape"))
        random = np.random.default_rng([int.from_bytes(seed, "big"), _NEGATIVES])
        own, found = self._known.of(image), dict[str, str]()
        for _ in range(2 * self._each):
            text = make(caption, own, random)
            if text is None or len(found) == self._each:
                break
            found.setdefault(normalise_caption(text), text)
        return list(found.values())

    def of(self, rows: IntArray, step: int, own: slice) -> BatchNegatives:
        """The hard negatives of a rank's `own` among these pairs of all ranks.  (B,)"""
        images, captions = self._pairs.pair_images[rows], self._pairs.pair_captions[rows]
        random = np.random.default_rng([self._seed, step, _NEGATIVES]).random(len(rows))
        chosen = (random * self._counts[captions]).astype(np.int64)
        numbers = self._numbers[captions, chosen]
        features = self._features.at(self._rows[captions, chosen][own])
        return BatchNegatives([], self._known.not_negative(images[own], numbers), features)


class StreamNegatives:
    """Draws hard negatives of streamed pairs by the seed, the step and the place in the batch of all ranks.

    Args:
        words: of the captions at the beginning of the stream, the same in a run that is resumed.
    """

    def __init__(self, words: Words, seed: int, tokenizer: Tokenizer) -> None:
        self.words, self._seed = words, seed
        self.make = Maker(words, tokenizer)

    def of(self, pairs: Sequence[StreamedPair], step: int, first: int) -> tuple[list[str], IntArray]:
        """The hard negatives of the pairs of a rank, whose first one has this place in the batch, and their ids.

        Returns:
            The captions, (b,), and int64 (b,): that of the pair's own caption, which is then repeated, where none can
            be made.
        """
        texts: list[str] = []
        for place, pair in enumerate(pairs, start=first):
            random = np.random.default_rng([self._seed, step, place, _NEGATIVES])
            text = self.make(pair.caption, pair.captions, random)
            texts.append(pair.caption if text is None else text)
        return texts, np.array([caption_id(text) for text in texts], dtype=np.int64)


def _of_all(progress: Progress, some: range, count: int, done: int, total: int) -> None:
    """Progress among all captions, from that of the negatives of some."""
    progress(some.start + len(some) * done // total, count)


IndexedNegatives = NegativeCaptions | NegativeFeatures


def indexed_negatives(
    pairs: PairSet, captions: Tokenizer | CaptionFeatures, seed: int, say: Callable[[str], None]
) -> IndexedNegatives:
    """Hard negatives for what the text tower takes; says how many captions have one.

    Raises:
        UsageError: if none has.
    """
    negatives: IndexedNegatives
    if isinstance(captions, CaptionFeatures):
        negatives = NegativeFeatures(pairs, captions, seed, say)
    else:
        negatives = NegativeCaptions(pairs, seed, captions)
    say(f"hard negatives for {negatives.line}: words swapped, replaced, shuffled")
    return negatives
