"""Batches in an order that depends on the seed and the step alone, so that resuming anywhere is exact.

Shapes: B pairs of the batch of all ranks, b of this rank, U distinct captions among these, G of them in a group,
S image side, T tokens of a group's longest caption, or a few more.
"""

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
from clip_core.training.caption_augmentation import CaptionAugmentation, draw_keys
from clip_core.training.caption_inputs import CaptionInputs, CaptionTable
from clip_core.training.frozen_features import CaptionFeatures, FeatureStore
from clip_core.training.negative_captions import BatchNegatives, IndexedNegatives
from clip_core.training.ranks import Rank

_AHEAD = 3
_POLL = 0.2  # seconds
_VIEWS = 1  # of the seeds, so that views and captions are drawn apart
_UNCHANGED = CaptionAugmentation()
_ALONE = Rank()


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
    # With hard negatives: the row of each pair's wrong caption in the concatenated groups, int64 (b,), and which of all
    # wrong captions are no negatives of an image, bool (b, B). Where a rank cannot know that, the ids of its wrong
    # captions, int64 (b,): equal to those of captions that count as the same.
    negative_rows: Tensor | None = None
    not_negative: Tensor | None = None
    negative_ids: Tensor | None = None
    gathers_ids: bool = False  # each rank knows its own ids alone, and the step has to gather those of all

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
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return Batch(**values | changed | {"input_ids": groups})


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
        negatives: IndexedNegatives | None = None,
    ) -> None:
        """
        Args:
            batch_size: B, of all ranks together.
            groups: most groups of captions of like length that a batch is encoded in.
            bpe_dropout: share of the tokens that are split into the two they were merged from.
            rank: whose part of each batch is made.
            equal: ranks have equally many captions, b, some of which are then there twice: a sharded network makes the
                same forward passes on all of them.
            negatives: each pair has one of these wrong captions beside its own.
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
        self.negatives = negatives
        if isinstance(tokenizer, CaptionFeatures):
            self.caption_features = tokenizer.encode(pairs.captions)
            return
        how = CaptionInputs(tokenizer, groups=groups, augmentation=augmentation, bpe_dropout=bpe_dropout)
        self.captions = CaptionTable(pairs.captions, how)

    def __call__(self, step: int, *, whole: bool = False) -> Batch:
        """The batch of a step: this rank's part of it, or the `whole` one, as if this were the only process."""
        all_rows = self.rows(step)
        all_images, all_captions = self.pairs.pair_images[all_rows], self.pairs.pair_captions[all_rows]
        own = slice(0, len(all_rows)) if whole else self.rank.part(len(all_rows))
        images, captions = all_images[own], all_captions[own]
        distinct, text_rows = np.unique(captions, return_inverse=True)
        if self.equal:
            distinct = np.pad(distinct, (0, len(captions) - len(distinct)), mode="edge")
        wrong = None if self.negatives is None else self.negatives.of(all_rows, step, own)
        inputs, position = self._captions(distinct, step, wrong, own.start)
        return Batch(
            images=torch.from_numpy(self._images(all_images, own, step)),
            input_ids=inputs,
            text_rows=torch.from_numpy(position[text_rows]),
            image_ids=torch.from_numpy(images),
            caption_ids=torch.from_numpy(captions),
            all_image_ids=torch.from_numpy(all_images),
            all_caption_ids=torch.from_numpy(all_captions),
            negative_rows=None if wrong is None else torch.from_numpy(position[len(distinct) :]),
            not_negative=None if wrong is None else torch.from_numpy(wrong.not_negative),
        )

    def _images(self, rows: IntArray, own: slice, step: int) -> NDArray[Any]:
        """Pixels or features of our part of these images; features of a view drawn for each.  (B,) -> (b, ...)"""
        if isinstance(self.store, FeatureStore) and self.store.views > 1:
            random = np.random.default_rng([self.seed, step, _VIEWS])
            return self.store.get(rows[own], random.integers(self.store.views, size=len(rows))[own])
        return self.store.get(rows[own])

    def _captions(
        self, distinct: IntArray, step: int, wrong: BatchNegatives | None, first: int
    ) -> tuple[tuple[Tensor, ...], IntArray]:
        """What the text tower takes of these captions and of the wrong ones, and the place of each in it.

        Args:
            first: the place of this rank's first pair in the batch of all ranks.
        """
        if self.caption_features is not None:
            rows = self.caption_features[distinct]
            if wrong is not None and wrong.features is not None:
                rows = np.concatenate([rows, wrong.features])
            return (torch.from_numpy(rows),), np.arange(len(rows))
        others = [] if wrong is None else wrong.captions
        numbers = np.concatenate([distinct, len(self.pairs.captions) + first + np.arange(len(others))])
        return self.captions.inputs(distinct, draw_keys(self.seed, step, numbers), others)

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


def _raise(error: BaseException | None, stopping: bool) -> bool:
    if error is not None:
        raise error
    return stopping


class BatchStream:
    """Batches made ahead by a thread while the device computes.

    Attributes:
        waited: the data wait so far, in seconds.
        waiting: called several times a second while the next batch is not there; returns whether to give up.
        agree: called before each batch, with the error and whether `waiting` gave up where there is no batch; returns
            whether the iteration ends here.
    """

    def __init__(self, make: Callable[[int], Batch], first: int, last: int, device: torch.device) -> None:
        self.waited = 0.0
        self.waiting: Callable[[], bool] = lambda: False
        self.agree: Callable[[BaseException | None, bool], bool] = _raise
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=_AHEAD)
        self._closed = threading.Event()
        self._count = last - first
        self._thread = threading.Thread(
            target=self._fill, args=(make, first, last, device.type == "cuda"), name="batches", daemon=True
        )
        self._thread.start()

    def _fill(self, make: Callable[[int], Batch], first: int, last: int, pin: bool) -> None:
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
            item = self._get()
            self.waited += time.perf_counter() - started
            error = item if isinstance(item, BaseException) else None
            if self.agree(error, item is None) or not isinstance(item, Batch):
                return
            yield item

    def _get(self) -> Batch | BaseException | None:
        """The next batch, or why there is none; None if it was given up."""
        while True:
            try:
                return self._queue.get(timeout=_POLL)
            except queue.Empty:
                if self.waiting():
                    return None

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
