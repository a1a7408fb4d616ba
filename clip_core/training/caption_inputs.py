"""Captions as the text tower takes them: tokenized, augmented for a step, in groups of like length.

Shapes: U distinct captions of a batch, G of them in a group, T tokens of a group's longest caption, or a few more.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clip_core.data.dataset import IntArray
from clip_core.data.tokenizer import Tokenizer
from clip_core.training.caption_augmentation import BPEDropout, CaptionAugmentation, Keys

_UNCHANGED = CaptionAugmentation()
_SMALLEST_GROUP = 8  # captions; fewer would not fill a matrix product
# Captions are padded to a multiple of 8 tokens. oneDNN keeps code and memory for every shape of a matrix product: with
# every width, a run grew by hundreds of MB and was slower.
_WIDTH_MULTIPLE = 8


class CaptionInputs:
    """How captions become token rows.

    Args:
        groups: most groups of captions of like length that a batch is encoded in.
        bpe_dropout: share of the tokens that are split into the two they were merged from.
    Raises:
        TokenizerError: if `bpe_dropout` is not 0 and the tokenizer is no byte-pair encoding.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        groups: int = 1,
        augmentation: CaptionAugmentation = _UNCHANGED,
        bpe_dropout: float = 0.0,
    ) -> None:
        self.tokenizer, self.groups, self.augmentation = tokenizer, groups, augmentation
        self.whole = tokenizer.pads_to_context  # padding is part of the input
        self.bpe_dropout = BPEDropout(tokenizer, bpe_dropout) if bpe_dropout else None

    def width(self, tokens: int) -> int:
        """The padded length for a number of tokens."""
        return min(math.ceil(tokens / _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE, self.tokenizer.context_length)

    def widened(self, rows: IntArray, tokens: int = 0) -> IntArray:
        """Token rows padded to at least `tokens` tokens.  (U, T) -> (U, T or more)"""
        more = self.width(max(rows.shape[1], tokens)) - rows.shape[1]
        return np.pad(rows, ((0, 0), (0, more)), constant_values=self.tokenizer.pad_id)

    def counts(self, rows: IntArray) -> IntArray:
        """The length of each row, without its padding.  (U, T) -> (U,)"""
        if self.whole:
            return np.full(len(rows), rows.shape[1])
        counts: IntArray = 1 + (rows == self.tokenizer.end_token).argmax(axis=1)
        return counts

    def grouped(self, by_length: IntArray) -> list[IntArray]:
        """Rows in the order of their length, cut into groups that are each padded to their own longest.  (U,)"""
        return np.array_split(by_length, max(min(self.groups, len(by_length) // _SMALLEST_GROUP), 1))


class CaptionTable:
    """Captions that were tokenized once, from which batches take some."""

    def __init__(self, captions: Sequence[str], how: CaptionInputs) -> None:
        self.captions, self.how = captions, how
        rows = how.widened(how.tokenizer.encode(list(captions)))
        self._rows, self._counts = rows.astype(np.int32), how.counts(rows)
        self._augmented = np.array([how.augmentation.changes(caption) for caption in captions])

    def inputs(self, captions: IntArray, keys: Keys, others: Sequence[str] = ()) -> tuple[tuple[Tensor, ...], IntArray]:
        """What the text tower takes of these captions, and the place of each in it.

        Args:
            captions: numbers of captions, (U,).
            keys: of the random numbers of each, and of the others, (U + V,).
            others: V captions that are not in the table, which come after those.
        Returns:
            int64 (G, T) each, and (U + V,).
        """
        token_rows, counts = self.tokens(captions, keys, others)
        by_length = np.argsort(counts, kind="stable")
        position = np.empty_like(by_length)
        position[by_length] = np.arange(len(by_length))
        groups = tuple(
            torch.from_numpy(token_rows[group, : self.how.width(counts[group].max())])
            for group in self.how.grouped(by_length)
        )
        return groups, position

    def tokens(self, captions: IntArray, keys: Keys, others: Sequence[str] = ()) -> tuple[IntArray, IntArray]:
        """Captions as token rows, augmented by these keys, and the length of each.

        (U,), (U + V,), V -> (U + V, T at least their longest), (U + V,)
        """
        how = self.how
        rows, counts = self._rows[captions].astype(np.int64), self._counts[captions]
        texts = [self.captions[caption] for caption in captions] + list(others)
        which = np.flatnonzero(np.append(self._augmented[captions], np.ones(len(others), np.bool_)))
        if len(which):
            augmented = how.tokenizer.encode(
                [
                    how.augmentation(texts[place], np.random.default_rng(int(keys[place])))
                    if how.augmentation.changes(texts[place])
                    else texts[place]
                    for place in which
                ]
            )
            width = max(rows.shape[1], augmented.shape[1])
            rows, augmented = how.widened(rows, width), how.widened(augmented, width)
            rows = np.pad(rows, ((0, len(others)), (0, 0)))
            rows[which] = augmented
        if how.bpe_dropout is not None:
            rows = how.widened(how.bpe_dropout(rows, keys))
        if len(which) or how.bpe_dropout is not None:
            counts = how.counts(rows)
        return rows, counts
