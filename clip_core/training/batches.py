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
from numpy.typing import NDArray
from torch import Tensor

from clip_core.data.dataset import PairSet
from clip_core.data.store import PictureStore
from clip_core.data.tokenizer import Tokenizer

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
        self, pairs: PairSet, store: PictureStore, tokenizer: Tokenizer, *, batch_size: int, seed: int
    ) -> None:
        self.pairs, self.store = pairs, store
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = len(pairs.pair_images) // batch_size
        self.token_rows = tokenizer.encode(pairs.captions).astype(np.int32)
        self.whole = tokenizer.pads_to_context  # a network that reads the padding needs it
        self.token_counts = 1 + (self.token_rows == tokenizer.end_token).argmax(axis=1)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The permutation of the pairs in an epoch; what does not fill a last batch waits for the next epoch."""
        if self._order is None or self._order[0] != epoch:
            permutation = np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs.pair_images))
            self._order = (epoch, permutation)
        return self._order[1]

    def __call__(self, step: int) -> Batch:
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = self.order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        images, captions = self.pairs.pair_images[rows], self.pairs.pair_captions[rows]
        distinct, text_rows = np.unique(captions, return_inverse=True)
        length = self.token_rows.shape[1] if self.whole else int(self.token_counts[distinct].max())
        return Batch(
            torch.from_numpy(self.store.get(images)),
            torch.from_numpy(self.token_rows[distinct, :length].astype(np.int64)),
            torch.from_numpy(text_rows.astype(np.int64)),
            torch.from_numpy(images),
            torch.from_numpy(captions),
        )


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
