"""Batches in an order that depends on the seed and the step alone, so that resuming anywhere is exact.

Shapes: B pairs, U distinct captions among them, G of these in a group, S image side, T tokens of the group's longest,
or a few more.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from clip_core.config import Captions
from clip_core.data.dataset import IntArray, PairSet
from clip_core.data.store import ImageStore
from clip_core.data.tokenizer import Tokenizer
from clip_core.training.captions import CaptionChange, MergeDropout
from clip_core.training.order import Order

_AHEAD = 3
_UNCHANGED = CaptionChange()
_SMALLEST_GROUP = 8  # captions; fewer would not fill a matrix product
# Captions are as wide as a multiple of so many tokens. A CPU keeps code and memory for every shape of a matrix product:
# with all widths there are, a run grew by hundreds of MB, and was slower.
_WIDTH_STEP = 8


@dataclass(frozen=True)
class Batch:
    images: Tensor  # uint8 (B, S, S, 3)
    input_ids: tuple[Tensor, ...]  # int64 (G, T) each, U rows in all: a caption that repeats is encoded once
    text_rows: Tensor  # int64 (B,): each pair's row of all the groups, one below the other
    image_ids: Tensor  # int64 (B,)
    caption_ids: Tensor  # int64 (B,)

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Batch":
        """On the device; from pinned memory the copy overlaps with what the device is doing."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        groups = tuple(change(group) for group in self.input_ids)
        others = {field.name: change(getattr(self, field.name)) for field in fields(self) if field.name != "input_ids"}
        return Batch(input_ids=groups, **others)


class BatchMaker:
    """Any batch of a run, by its step."""

    def __init__(
        self,
        pairs: PairSet,
        store: ImageStore,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        seed: int,
        captions: Captions = "all",
        groups: int = 1,
        change: CaptionChange = _UNCHANGED,
        bpe_dropout: float = 0.0,
    ) -> None:
        """`bpe_dropout`: the share of tokens that are read in pieces.

        Raises:
            TokenizerError: if there is such a share and the tokenizer has no pieces.
        """
        self.pairs, self.store, self.tokenizer, self.seed = pairs, store, tokenizer, seed
        self.order = Order(pairs, batch_size=batch_size, seed=seed, captions=captions)
        self.steps_per_epoch = self.order.steps
        self.whole = tokenizer.pads_to_context  # a network that reads the padding needs it
        token_rows = self._widened(tokenizer.encode(pairs.captions))
        self.token_rows, self.token_counts = token_rows.astype(np.int32), self._counts(token_rows)
        self.groups = groups
        self.change = change
        self._in_pieces = MergeDropout(tokenizer, bpe_dropout) if bpe_dropout else None
        self._changed = np.array([change.changes(caption) for caption in pairs.captions])
        self._dealt: tuple[int, IntArray] | None = None

    def __call__(self, step: int) -> Batch:
        rows = self.rows(step)
        images, captions = self.pairs.pair_images[rows], self.pairs.pair_captions[rows]
        distinct, text_rows = np.unique(captions, return_inverse=True)
        token_rows, counts = self.tokens(distinct, step)
        by_length = np.argsort(counts, kind="stable")
        place = np.empty_like(by_length)
        place[by_length] = np.arange(len(by_length))
        return Batch(
            torch.from_numpy(self.store.get(images)),
            tuple(torch.from_numpy(token_rows[g, : self._width(counts[g].max())]) for g in self.grouped(by_length)),
            torch.from_numpy(place[text_rows]),
            torch.from_numpy(images),
            torch.from_numpy(captions),
        )

    def rows(self, step: int) -> IntArray:
        """The pairs of a step's batch.  -> (B,)"""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._dealt is None or self._dealt[0] != epoch:
            self._dealt = (epoch, self.order(epoch))
        rows: IntArray = self._dealt[1][position]
        return rows

    def tokens(self, captions: IntArray, step: int) -> tuple[IntArray, IntArray]:
        """Captions as token rows, changed for this step, and how many tokens each needs.

        (U,) -> (U, T at least their longest), (U,)
        """
        rows, counts = self.token_rows[captions].astype(np.int64), self.token_counts[captions]
        which = np.flatnonzero(self._changed[captions])
        random = np.random.default_rng([self.seed, step])
        if len(which):
            changed = self.tokenizer.encode([self.change(self.pairs.captions[c], random) for c in captions[which]])
            width = max(rows.shape[1], changed.shape[1])
            rows, changed = self._widened(rows, width), self._widened(changed, width)
            rows[which] = changed
        if self._in_pieces is not None:
            rows = self._widened(self._in_pieces(rows, random))
        if len(which) or self._in_pieces is not None:
            counts = self._counts(rows)
        return rows, counts

    def _width(self, tokens: int) -> int:
        """What so many tokens are padded to."""
        return min(math.ceil(tokens / _WIDTH_STEP) * _WIDTH_STEP, self.tokenizer.context_length)

    def _widened(self, rows: IntArray, tokens: int = 0) -> IntArray:
        """Token rows padded, to at least so many tokens.  (U, T) -> (U, T or more)"""
        more = self._width(max(rows.shape[1], tokens)) - rows.shape[1]
        return np.pad(rows, ((0, 0), (0, more)), constant_values=self.tokenizer.pad_id)

    def _counts(self, rows: IntArray) -> IntArray:
        """How many tokens of each row are read.  (U, T) -> (U,)"""
        if self.whole:
            return np.full(len(rows), rows.shape[1])
        counts: IntArray = 1 + (rows == self.tokenizer.end_token).argmax(axis=1)
        return counts

    def grouped(self, by_length: IntArray) -> list[IntArray]:
        """Rows in the order of their length, cut into groups that are padded each to its own longest.  (U,)"""
        return np.array_split(by_length, max(min(self.groups, len(by_length) // _SMALLEST_GROUP), 1))


class BatchStream:
    """Batches made ahead by a thread while the device computes; counts the time spent waiting for them."""

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
        except BaseException as error:  # handed to the training thread, which raises it
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
