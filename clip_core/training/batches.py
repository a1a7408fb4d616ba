"""Batches in an order that depends on the seed and the step alone, so that resuming anywhere is exact.

Shapes: B pairs of the batch of all ranks, b of this rank, U distinct captions among these, G of them in a group,
S image side, T tokens of a group's longest caption, or a few more.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_core.config import Captions
from clip_core.data.dataset import IntArray, PairSet
from clip_core.data.store import Images
from clip_core.data.tokenizer import Tokenizer
from clip_core.training.batch_order import BatchOrder
from clip_core.training.caption_augmentation import BPEDropout, CaptionAugmentation, draw_keys
from clip_core.training.frozen_features import CaptionFeatures, FeatureStore
from clip_core.training.ranks import Rank

_AHEAD = 3
_VIEWS = 1  # of the seeds, so that views and captions are drawn apart
_UNCHANGED = CaptionAugmentation()
_ALONE = Rank()
_SMALLEST_GROUP = 8  # captions; fewer would not fill a matrix product
# Captions are padded to a multiple of 8 tokens. oneDNN keeps code and memory for every shape of a matrix product: with
# every width, a run grew by hundreds of MB and was slower.
_WIDTH_MULTIPLE = 8


@dataclass(frozen=True)
class Batch:
    """One step's pairs of this rank; ids say which pairs match, among all ranks too."""

    images: Tensor  # uint8 (b, S, S, 3), or features, float32 (b, F) or (b, P, F)
    # int64 (G, T) each, U rows in all: a repeated caption is encoded once; or features, float32 (U, F)
    input_ids: tuple[Tensor, ...]
    text_rows: Tensor  # int64 (b,): each pair's row in the concatenated groups
    image_ids: Tensor  # int64 (b,)
    caption_ids: Tensor  # int64 (b,)
    all_image_ids: Tensor  # int64 (B,)
    all_caption_ids: Tensor  # int64 (B,)

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Batch":
        """On the device; from pinned memory the copy overlaps with the computation."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        return self._each(Tensor.pin_memory)

    def rows(self, which: slice) -> "Batch":
        """Some of the pairs, with all captions."""
        rows = {name: getattr(self, name)[which] for name in ("images", "text_rows", "image_ids", "caption_ids")}
        return replace(self, **rows)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        groups = tuple(change(group) for group in self.input_ids)
        others = {field.name: change(getattr(self, field.name)) for field in fields(self) if field.name != "input_ids"}
        return Batch(input_ids=groups, **others)


class BatchMaker:
    """Any batch of a run, by its step."""

    def __init__(
        self,
        pairs: PairSet,
        store: Images,
        tokenizer: Tokenizer | CaptionFeatures,
        *,
        batch_size: int,
        seed: int,
        captions: Captions = "all",
        groups: int = 1,
        augmentation: CaptionAugmentation = _UNCHANGED,
        bpe_dropout: float = 0.0,
        rank: Rank = _ALONE,
        equal: bool = False,
    ) -> None:
        """
        Args:
            batch_size: B, of all ranks together.
            groups: most groups of captions of like length that a batch is encoded in.
            bpe_dropout: share of the tokens that are split into the two they were merged from.
            rank: whose part of each batch is made.
            equal: ranks have equally many captions, b, some of which are then there twice: a sharded network makes the
                same forward passes on all of them.
        Raises:
            TokenizerError: if `bpe_dropout` is not 0 and the tokenizer is no byte-pair encoding.
            UsageError: if there are fewer pairs than ranks.
        """
        self.pairs, self.store, self.seed = pairs, store, seed
        self.rank, self.equal = rank, equal
        self.order = BatchOrder(pairs, batch_size=batch_size, seed=seed, captions=captions, rank=rank)
        self.steps_per_epoch = self.order.steps
        self._epoch: tuple[int, IntArray] | None = None
        self.caption_features = None
        if isinstance(tokenizer, CaptionFeatures):
            self.caption_features = tokenizer.encode(pairs.captions)
            return
        self.tokenizer = tokenizer
        self.whole = tokenizer.pads_to_context  # padding is part of the input
        token_rows = self._widened(tokenizer.encode(pairs.captions))
        self.token_rows, self.token_counts = token_rows.astype(np.int32), self._counts(token_rows)
        self.groups = groups
        self.augmentation = augmentation
        self._bpe_dropout = BPEDropout(tokenizer, bpe_dropout) if bpe_dropout else None
        self._augmented = np.array([augmentation.changes(caption) for caption in pairs.captions])

    def __call__(self, step: int, *, whole: bool = False) -> Batch:
        """The batch of a step: this rank's part of it, or the `whole` one, as if this were the only process."""
        all_rows = self.rows(step)
        all_images, all_captions = self.pairs.pair_images[all_rows], self.pairs.pair_captions[all_rows]
        own = slice(len(all_rows)) if whole else self.rank.part(len(all_rows))
        images, captions = all_images[own], all_captions[own]
        distinct, text_rows = np.unique(captions, return_inverse=True)
        if self.equal:
            distinct = np.pad(distinct, (0, len(captions) - len(distinct)), mode="edge")
        inputs, position = self._captions(distinct, step)
        return Batch(
            images=torch.from_numpy(self._images(all_images, own, step)),
            input_ids=inputs,
            text_rows=torch.from_numpy(position[text_rows]),
            image_ids=torch.from_numpy(images),
            caption_ids=torch.from_numpy(captions),
            all_image_ids=torch.from_numpy(all_images),
            all_caption_ids=torch.from_numpy(all_captions),
        )

    def _images(self, rows: IntArray, own: slice, step: int) -> NDArray[Any]:
        """Pixels or features of our part of these images; features of a view drawn for each.  (B,) -> (b, ...)"""
        if isinstance(self.store, FeatureStore) and self.store.views > 1:
            random = np.random.default_rng([self.seed, step, _VIEWS])
            return self.store.get(rows[own], random.integers(self.store.views, size=len(rows))[own])
        return self.store.get(rows[own])

    def _captions(self, distinct: IntArray, step: int) -> tuple[tuple[Tensor, ...], IntArray]:
        """What the text tower takes of these captions, and the place of each in it.  (U) -> ..., (U)"""
        if self.caption_features is not None:
            return (torch.from_numpy(self.caption_features[distinct]),), np.arange(len(distinct))
        token_rows, counts = self.tokens(distinct, step)
        by_length = np.argsort(counts, kind="stable")
        position = np.empty_like(by_length)
        position[by_length] = np.arange(len(by_length))
        groups = tuple(
            torch.from_numpy(token_rows[group, : self._width(counts[group].max())]) for group in self.grouped(by_length)
        )
        return groups, position

    def rows(self, step: int) -> IntArray:
        """The pairs of a step's batch, of all ranks.  -> (B,)"""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self.order.batches(epoch))
        rows: IntArray = self._epoch[1][position]
        return rows

    def image_names(self, step: int) -> list[str]:
        """The paths, below the image root, of the images of a step's batch, of all ranks; not from the cache of `rows`,
        which the thread that makes batches may be changing.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        images = self.pairs.pair_images[self.order.batches(epoch)[position]]
        return [self.pairs.names[row] if self.pairs.names else str(self.pairs.images[row]) for row in images]

    def tokens(self, captions: IntArray, step: int) -> tuple[IntArray, IntArray]:
        """Captions as token rows, augmented for this step, and the length of each.

        (U,) -> (U, T at least their longest), (U,)
        """
        rows, counts = self.token_rows[captions].astype(np.int64), self.token_counts[captions]
        which = np.flatnonzero(self._augmented[captions])
        keys = draw_keys(self.seed, step, captions)
        if len(which):
            texts = [
                self.augmentation(self.pairs.captions[caption], np.random.default_rng(int(key)))
                for caption, key in zip(captions[which], keys[which], strict=True)
            ]
            augmented = self.tokenizer.encode(texts)
            width = max(rows.shape[1], augmented.shape[1])
            rows, augmented = self._widened(rows, width), self._widened(augmented, width)
            rows[which] = augmented
        if self._bpe_dropout is not None:
            rows = self._widened(self._bpe_dropout(rows, keys))
        if len(which) or self._bpe_dropout is not None:
            counts = self._counts(rows)
        return rows, counts

    def _width(self, tokens: int) -> int:
        """The padded length for a number of tokens."""
        return min(math.ceil(tokens / _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE, self.tokenizer.context_length)

    def _widened(self, rows: IntArray, tokens: int = 0) -> IntArray:
        """Token rows padded to at least `tokens` tokens.  (U, T) -> (U, T or more)"""
        more = self._width(max(rows.shape[1], tokens)) - rows.shape[1]
        return np.pad(rows, ((0, 0), (0, more)), constant_values=self.tokenizer.pad_id)

    def _counts(self, rows: IntArray) -> IntArray:
        """The length of each row, without its padding.  (U, T) -> (U,)"""
        if self.whole:
            return np.full(len(rows), rows.shape[1])
        counts: IntArray = 1 + (rows == self.tokenizer.end_token).argmax(axis=1)
        return counts

    def grouped(self, by_length: IntArray) -> list[IntArray]:
        """Rows in the order of their length, cut into groups that are each padded to their own longest.  (U,)"""
        return np.array_split(by_length, max(min(self.groups, len(by_length) // _SMALLEST_GROUP), 1))


class BatchStream:
    """Batches made ahead by a thread while the device computes; `waited` is the data wait so far, in seconds."""

    def __init__(self, make: BatchMaker, first: int, last: int, device: torch.device) -> None:
        self.waited = 0.0
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=_AHEAD)
        self._closed = threading.Event()
        self._count = last - first
        self._thread = threading.Thread(
            target=self._fill, args=(make, first, last, device.type == "cuda"), name="batches", daemon=True
        )
        self._thread.start()

    def _fill(self, make: BatchMaker, first: int, last: int, pin: bool) -> None:
        try:
            for step in range(first, last):
                batch = make(step)
                self._put(batch.pinned() if pin else batch)
                if self._closed.is_set():
                    return
        except BaseException as error:  # raised again by the training thread
            self._put(error)

    def _put(self, item: Batch | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._count):
            started = time.perf_counter()
            item = self._queue.get()
            self.waited += time.perf_counter() - started
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
