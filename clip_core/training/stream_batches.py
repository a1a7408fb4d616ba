"""Batches of a stream of shards, each step's after the one before, with the state that continues after any of them.

Every lane gives an equal part of each batch, in the order of the lanes, and a process has lanes that follow each other:
so any number of processes that divides the lanes trains on the same batches. No process ever waits for the shards of
another to end, as lanes have no end.

Shapes: B pairs of the batch of all ranks, b of this rank, U distinct captions among these, S image side.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from clip_core.config import DataConfig
from clip_core.data.pairs import decoding_threads, reason
from clip_core.data.preprocess import Pixels
from clip_core.data.stream.lane import Lane, Shards, as_references
from clip_core.data.stream.samples import StreamedPair
from clip_core.errors import DataError, ImageError, RunError
from clip_core.network import Preprocessing
from clip_core.text import plural, printable
from clip_core.training.batches import Batch
from clip_core.training.caption_augmentation import draw_keys
from clip_core.training.caption_inputs import CaptionInputs, CaptionTable
from clip_core.training.fast_decode import decode_content
from clip_core.training.log import Log
from clip_core.training.negative_captions import StreamNegatives
from clip_core.training.ranks import Rank

_ALONE = Rank()
_KEPT = 8  # steps whose state is known, more than batches are made ahead
_KEPT_NAMES = 32  # more than these and those that a GPU runs ahead
_NAMED, _RECORDED = 3, 1000  # bad pairs in the log, and in train.log
_ENOUGH = 1000  # pairs, before their share of bad ones says something
_CHUNK = 16  # images a thread decodes at a time


class StreamBatches:
    """The batch of the next step, or of one after it, or again the last one."""

    def __init__(
        self,
        shards: Shards,
        captions: CaptionInputs,
        preprocessing: Preprocessing,
        config: DataConfig,
        log: Log,
        *,
        batch_size: int,
        epoch_pairs: int,
        rank: Rank = _ALONE,
        equal: bool = False,
        negatives: StreamNegatives | None = None,
    ) -> None:
        """
        Args:
            batch_size: B, which the number of lanes divides.
            epoch_pairs: that count as an epoch.
            rank: whose lanes are read; their number divides that of the lanes.
            equal: ranks have equally many captions, some of which are then there twice, as sharded networks need it.
            negatives: each pair has one of these wrong captions beside its own.
        """
        self.shards, self.captions, self.preprocessing = shards, captions, preprocessing
        self.rank, self.equal, self.negatives = rank, equal, negatives
        self.steps_per_epoch = max(epoch_pairs // batch_size, 1)
        self._config, self._log, self._epoch_pairs, self._batch_size = config, log, epoch_pairs, batch_size
        self._each = batch_size // shards.lanes
        self._open()
        self._next = 0
        self._made: tuple[int, Batch] | None = None
        self._states = {0: self._state()}
        self._names: dict[int, list[str]] = {}
        self._first_bad: list[str] = []
        self._recorded = 0

    def __call__(self, step: int, *, whole: bool = False) -> Batch:
        """The batch of a step: this rank's part of it, or the `whole` one, as if this were the only process.

        Raises:
            DataError: if a shard cannot be read, or too many pairs are bad.
            StoppedError: if it was closed.
        """
        if whole and self.rank.size > 1:
            alone = StreamBatches(
                replace(self.shards), self.captions, self.preprocessing, self._config, self._log,
                batch_size=self._batch_size, epoch_pairs=self._epoch_pairs, negatives=self.negatives,
            )  # fmt: skip
            try:
                return alone(step)
            finally:
                alone.close()
        if step < self._next and (self._made is None or self._made[0] != step):
            raise ValueError(f"step {step} of a stream that is at step {self._next}")
        while self._next <= step:
            self._made = (self._next, self._make(self._next))
            self._next += 1
            self._states[self._next] = self._state()
            self._states.pop(self._next - _KEPT, None)
            self._names.pop(self._next - _KEPT_NAMES, None)
        assert self._made is not None
        return self._made[1]

    def image_names(self, step: int) -> list[str]:
        """The names of the images of this rank in a step's batch, one of the last ones."""
        return self._names.get(step, [])

    def counts(self) -> Counter[str]:
        """`seen` pairs of this rank's lanes, beyond what was trained on, the `bad` ones among them, and `left_out`."""
        return Counter(
            seen=sum(lane.seen for lane in self._lanes),
            bad=sum(lane.bad for lane in self._lanes),
            left_out=sum(lane.left_out for lane in self._lanes),
        )

    def state(self, step: int) -> dict[str, Any]:
        """What continues at a step, one of the last ones or a later one, of this rank's lanes and shards."""
        states = self._states.copy()  # at once, as a thread makes the next batches
        known = max(earlier for earlier in states if earlier <= step)  # from which batches may have to be skipped
        lanes = [as_references(snapshot) for snapshot in states[known]]
        return {"step": known, "lanes": lanes, "tags": {str(n): tag for n, tag in self.shards.tags.copy().items()}}

    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue, also after `close`, at the step of the states, which are of all ranks that the run had.

        Raises:
            RunError: if this run has other lanes.
            DataError: if a shard has changed, or cannot be read.
        """
        lanes = [state for of_rank in states for state in of_rank["lanes"]]
        if len(lanes) != self.shards.lanes:
            raise RunError(f"the checkpoint has {len(lanes)} lanes of a stream, and this run {self.shards.lanes}.")
        for of_rank in states:
            self.shards.tags.update({int(shard): (tag[0], tag[1]) for shard, tag in of_rank["tags"].items()})
        self.shards.check()
        self.close()
        self._open()
        for lane in self._lanes:
            lane.restore(lanes[lane.number])
        self._next, self._made = int(states[0]["step"]), None
        self._states = {self._next: self._state()}

    def close(self) -> None:
        """End the reading; a thread that waits for the network ends when that answers."""
        for lane in self._lanes:
            lane.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _open(self) -> None:
        self._lanes = [Lane(self.shards, n) for n in range(self.shards.lanes)[self.rank.part(self.shards.lanes)]]
        for lane in self._lanes:
            lane.on_bad = self._name
        self._pool = ThreadPoolExecutor(decoding_threads(self._config.workers), thread_name_prefix="decode")

    # ------------------------------------------------------------ a batch

    def _make(self, step: int) -> Batch:
        pairs, pixels = self._decoded()
        self._refuse_bad()
        self._names[step] = [pair.name for pair in pairs]
        caption_ids = np.array([pair.caption_id for pair in pairs], dtype=np.int64)
        distinct, first, rows = np.unique(caption_ids, return_index=True, return_inverse=True)
        if self.equal:
            spare = (0, len(caption_ids) - len(distinct))
            distinct, first = np.pad(distinct, spare, mode="edge"), np.pad(first, spare, mode="edge")
        table = CaptionTable([pairs[place].caption for place in first], self.captions)
        wrong, wrong_ids = list[str](), np.empty(0, dtype=np.int64)
        if self.negatives is not None:
            wrong, wrong_ids = self.negatives.of(pairs, step, self.rank.rank * len(pairs))
        keys = draw_keys(self.shards.seed, step, np.concatenate([distinct, wrong_ids]))
        groups, position = table.inputs(np.arange(len(distinct)), keys, wrong)
        ids = [torch.tensor([pair.image_id for pair in pairs]), torch.from_numpy(caption_ids)]
        return Batch(
            images=torch.from_numpy(np.stack(pixels)),
            input_ids=groups,
            text_rows=torch.from_numpy(position[rows]),
            image_ids=ids[0],
            caption_ids=ids[1],
            all_image_ids=ids[0].repeat(self.rank.size),
            all_caption_ids=ids[1].repeat(self.rank.size),
            negative_rows=torch.from_numpy(position[len(distinct) :]) if wrong else None,
            negative_ids=torch.from_numpy(wrong_ids) if wrong else None,
            gathers_ids=self.rank.size > 1,
        )

    def _decoded(self) -> tuple[list[StreamedPair], list[Pixels]]:
        """The next pairs of each lane whose images can be decoded."""
        found: list[list[tuple[StreamedPair, Pixels]]] = [[] for _ in self._lanes]
        while missing := [
            (lane, good) for lane, good in zip(self._lanes, found, strict=True) for _ in range(self._each - len(good))
        ]:
            tried = [lane.next() for lane, _ in missing]
            for (lane, good), pair, image in zip(missing, tried, self._decode(tried), strict=True):
                if isinstance(image, str):
                    lane.bad += 1
                    self._name(image)
                else:
                    good.append((pair, image))
            self._refuse_bad()
        together = [decoded for good in found for decoded in good]
        return [pair for pair, _ in together], [image for _, image in together]

    def _decode(self, pairs: list[StreamedPair]) -> list[Pixels | str]:
        """Each image, or why it cannot be decoded."""

        def decode(start: int) -> list[Pixels | str]:
            return [self._try(pair) for pair in pairs[start : start + _CHUNK]]

        return [image for chunk in self._pool.map(decode, range(0, len(pairs), _CHUNK)) for image in chunk]

    def _try(self, pair: StreamedPair) -> Pixels | str:
        place = f"{self.shards.urls[pair.reference.shard]}, {pair.name}"
        try:
            return decode_content(pair.image, place, self.preprocessing)
        except ImageError as error:
            return reason(error)

    def _state(self) -> list[dict[str, Any]]:
        return [lane.snapshot() for lane in self._lanes]

    # ------------------------------------------------------------ bad pairs

    def _name(self, what: str) -> None:
        """Name a bad pair: the first in the log, more in train.log, all of them counted."""
        if len(self._first_bad) < _NAMED:
            self._first_bad.append(what)
            self._log.say(f"bad pair: {what}; skipped")
        elif self._recorded < _RECORDED:
            self._recorded += 1
            self._log.record(f"bad pair: {what}; skipped")

    def _refuse_bad(self) -> None:
        """
        Raises:
            DataError: if bad pairs may not be skipped, or are too many of those that were read.
        """
        counts = self.counts()
        first = self._first_bad[0] if self._first_bad else "a pair"
        if counts["bad"] and self._config.bad_pairs == "refuse":
            raise DataError(f"{printable(first, 400)}; skip bad pairs with --bad-pairs skip, or correct the shard.")
        most = self._config.max_bad_share
        if counts["seen"] >= min(_ENOUGH, self._epoch_pairs) and counts["bad"] > most * counts["seen"]:
            raise DataError(
                f"{counts['bad']:,} of {plural(counts['seen'], 'pair')} read so far are bad, more than --max-bad-share "
                f"{most:g} allows, first {printable(first, 400)}; correct the shards, or raise it."
            )
