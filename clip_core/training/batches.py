"""Batches in an order that depends on the seed and the step alone, so that resuming anywhere is exact.

Shapes: B pairs, U distinct captions among them, S picture side, T tokens of the batch's longest caption.
"""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from clip_core.config import Captions
from clip_core.data.dataset import IntArray, PairSet
from clip_core.data.store import PictureStore
from clip_core.data.tokenizer import Tokenizer
from clip_core.training.order import Order

_AHEAD = 3


@dataclass(frozen=True)
class Batch:
    pictures: Tensor  # uint8 (B, S, S, 3)
    input_ids: Tensor  # int64 (U, T): a caption that repeats is encoded once
    text_rows: Tensor  # int64 (B,): each pair's row of input_ids
    image_ids: Tensor  # int64 (B,)
    caption_ids: Tensor  # int64 (B,)

    def to(self, device: torch.device) -> "Batch":
        """On the device; from pinned memory the copy overlaps with what the device is doing."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def pinned(self) -> "Batch":
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))


class BatchMaker:
    """Any batch of a run, by its step."""

    def __init__(
        self,
        pairs: PairSet,
        store: PictureStore,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        seed: int,
        captions: Captions = "all",
    ) -> None:
        self.pairs, self.store = pairs, store
        self.order = Order(pairs, batch_size=batch_size, seed=seed, captions=captions)
        self.steps_per_epoch = self.order.steps
        self.token_rows = tokenizer.encode(pairs.captions).astype(np.int32)
        self.whole = tokenizer.pads_to_context  # a network that reads the padding needs it
        self.token_counts = 1 + (self.token_rows == tokenizer.end_token).argmax(axis=1)
        self._dealt: tuple[int, IntArray] | None = None

    def __call__(self, step: int) -> Batch:
        rows = self.rows(step)
        images, captions = self.pairs.pair_images[rows], self.pairs.pair_captions[rows]
        distinct, text_rows = np.unique(captions, return_inverse=True)
        return Batch(
            torch.from_numpy(self.store.get(images)),
            torch.from_numpy(self.tokens(distinct)),
            torch.from_numpy(text_rows.astype(np.int64)),
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

    def tokens(self, captions: IntArray) -> IntArray:
        """Captions as token rows, no longer than the longest of them needs.  (U,) -> (U, T)"""
        length = self.token_rows.shape[1] if self.whole else int(self.token_counts[captions].max())
        return self.token_rows[captions, :length].astype(np.int64)


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
