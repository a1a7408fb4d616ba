"""A lane of a stream: some shards of each epoch, read one after the other by a thread, and a shuffle buffer.

A run has a fixed number of lanes, which the processes divide among themselves. The order of a lane's pairs depends on
the seed, the epoch, the lane and the shards alone, not on how fast anything was read. The epochs of a lane follow each
other without a gap: in each it gives every pair of its shards once, empties its buffer, and goes on with other shards.
"""

import queue
import shlex
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from clip_core.data.stream.left_out import LeftOut
from clip_core.data.stream.samples import Reference, StreamedPair, read_pair, read_samples
from clip_core.data.stream.source import LocalTag, ShardError, Source, StoppedError, is_remote
from clip_core.errors import DataError
from clip_core.text import plural, printable

_SHARDS, _BUFFER = 5, 6  # random streams of the seed
_AT_ONCE = 32  # samples that the thread hands over together
_AT_ONCE_BYTES = 1 << 20
_AHEAD = 4  # of these
_POLL = 0.1  # seconds


@dataclass
class Shards:
    """The shards of a run, and what was seen of each.

    Attributes:
        first, offset: where the training pairs begin: those before are the validation set.
        held_out: ids of images that are not trained on, as the validation set has them.
        left_out: pairs that are not trained on, as flags.json names them.
        sample_captions: one caption of an image in an epoch, another in the next, instead of all.
        tags: size and version of each shard that was opened, by its number.
    """

    urls: list[str]
    seed: int
    lanes: int
    buffer_size: int  # pairs in the shuffle buffer of a lane
    buffer_bytes: int  # and bytes at most, when it gives pairs before it is full
    first: int = 0
    offset: int = 0
    held_out: frozenset[int] = frozenset()
    sample_captions: bool = False
    left_out: LeftOut = field(default_factory=LeftOut)
    say: Callable[[str], None] = lambda line: None
    tags: dict[int, tuple[int | None, str]] = field(default_factory=dict)

    @property
    def shared(self) -> bool:
        """Whether each lane reads all shards and takes every n-th sample, as there are fewer shards than lanes."""
        return len(self.urls) - self.first < self.lanes

    def of_lane(self, lane: int, epoch: int) -> list[int]:
        """The numbers of the shards that a lane reads in an epoch, in their order."""
        order = np.random.default_rng([self.seed, epoch, _SHARDS]).permutation(len(self.urls) - self.first)
        own = order if self.shared else order[(lane + epoch) % self.lanes :: self.lanes]
        return [self.first + int(number) for number in own]

    def open(self, shard: int, start: int, closing: threading.Event) -> Source:
        """
        Raises:
            DataError: if it cannot be opened, or is not what it was when it was opened first.
        """
        source = Source(self.urls[shard], start, say=self.say, closing=closing)
        now = (source.size, source.tag)
        before = self.tags.setdefault(shard, now)
        if _differ(before, now):
            source.close()
            raise DataError(
                f"the shard {printable(source.url, 300)} has changed since this run read it ({_facts(before)} then, "
                f"{_facts(now)} now); put it back, or start a new run{_touch(source.url, before, now)}."
            )
        return source

    def check(self) -> None:
        """Look again at the local shards that were read: asking for each remote one could take minutes."""
        for shard in [shard for shard in self.tags if not is_remote(self.urls[shard])]:
            self.open(shard, 0, threading.Event()).close()


class Cursor(NamedTuple):
    """Where a lane reads on: the place in its shards of an epoch, the byte, and the samples of the epoch so far."""

    epoch: int = 0
    place: int = 0
    offset: int = -1  # -1: where the shard's training pairs begin
    samples: int = 0


class _Item(NamedTuple):
    """A sample, or the end of an epoch, and where to read on after it."""

    after: Cursor
    pairs: list[StreamedPair]
    bad: list[str]  # each with its place
    left_out: int = 0
    ends: bool = False


class Lane:
    """An endless sequence of pairs, from the beginning or from a state."""

    def __init__(self, shards: Shards, number: int) -> None:
        self.shards, self.number = shards, number
        self._closing = threading.Event()
        self._epoch, self._given, self._emptying = 0, 0, False
        self._buffer: list[StreamedPair] = []
        self._bytes = 0
        self._read: list[_Item] = []  # handed over, the next one last
        self._cursor = Cursor()
        self._random = self._buffer_random()
        self._thread: threading.Thread | None = None
        self._queue: queue.Queue[list[_Item] | BaseException] = queue.Queue(_AHEAD)
        self.seen = self.bad = self.left_out = self._good = 0
        self.ignored: Counter[str] = Counter()
        self.on_bad: Callable[[str], None] = lambda place: None

    def next(self) -> StreamedPair:
        """The next pair.

        Raises:
            DataError: if a shard cannot be read, or all that a lane has is unusable.
            StoppedError: if the lane was closed, also while waiting.
        """
        while True:
            full = len(self._buffer) >= self.shards.buffer_size or self._bytes >= self.shards.buffer_bytes
            if self._buffer and (full or self._emptying):
                return self._give()
            if self._emptying:
                self._begin(self._epoch + 1)
            item = self._next_item()
            self._cursor = item.after
            self.seen += len(item.pairs) + len(item.bad)
            self.bad += len(item.bad)
            self.left_out += item.left_out
            for place in item.bad:
                self.on_bad(place)
            for pair in item.pairs:
                if pair.image_id not in self.shards.held_out:
                    self._buffer.append(pair)
                    self._bytes += len(pair.image)
                    self._good += 1
            if item.ends:
                self._end_epoch()

    def snapshot(self) -> dict[str, Any]:
        """What continues exactly here, which nothing changes afterwards; cheap, as the buffer is only copied."""
        return {
            "epoch": self._epoch, "given": self._given, "emptying": self._emptying, "cursor": self._cursor,
            "buffer": self._buffer.copy(), "seen": self.seen, "bad": self.bad, "good": self._good,
            "left_out": self.left_out,
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """The snapshot as a checkpoint has it."""
        return as_references(self.snapshot())

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state, before the first pair is asked for; reads the pairs of its buffer again.

        Raises:
            DataError: if a shard cannot be read, or has changed.
        """
        self._begin(int(state["epoch"]))
        self._given, self._emptying = int(state["given"]), bool(state["emptying"])
        self._random.bit_generator.advance(self._given)  # type: ignore[attr-defined]
        self._cursor = Cursor(*state["cursor"])
        self.seen, self.bad, self._good = state["seen"], state["bad"], state["good"]
        self.left_out = state["left_out"]
        references = [Reference(*values) for values in state["buffer"]]
        found = {reference: self._again(reference, source) for reference, source in self._sources(references)}
        self._buffer = [found[reference] for reference in references]
        self._bytes = sum(len(pair.image) for pair in self._buffer)

    def close(self) -> None:
        self._closing.set()

    # ------------------------------------------------------------ the buffer

    def _give(self) -> StreamedPair:
        """One of the buffer at random; one random number each, so that a state need only count them."""
        place = int(self._random.random() * len(self._buffer))
        self._buffer[place], self._buffer[-1] = self._buffer[-1], self._buffer[place]
        pair = self._buffer.pop()
        self._bytes -= len(pair.image)
        self._given += 1
        return pair

    def _begin(self, epoch: int) -> None:
        self._epoch, self._given, self._emptying = epoch, 0, False
        self._random = self._buffer_random()

    def _end_epoch(self) -> None:
        self._emptying = True
        # A lane without shards in one epoch has some in the next; one that never has any would wait without end.
        if not self._good and self._epoch:
            held = self.seen - self.bad
            left = f", {self.left_out:,} more were left out by --leave-out" if self.left_out else ""
            raise DataError(
                f"none of the {plural(self.seen, 'pair')} that were read can be trained on: {self.bad:,} are bad, and "
                f"{held:,} have an image of the validation set{left}; clip-train takes images and the .txt or .json "
                "captions that follow them in a shard."
            )

    def _buffer_random(self) -> np.random.Generator:
        return np.random.default_rng([self.shards.seed, self._epoch, _BUFFER, self.number])

    def _sources(self, references: list[Reference]) -> Iterator[tuple[Reference, Source]]:
        """Each reference with its shard open, in the order of the shards, from front to back."""
        source, shard = None, -1
        try:
            for reference in sorted(set(references)):
                if reference.shard != shard or source is None:
                    if source is not None:
                        source.close()
                    shard = reference.shard
                    source = self.shards.open(shard, reference.start, self._closing)
                yield reference, source
        finally:
            if source is not None:
                source.close()

    def _again(self, reference: Reference, source: Source) -> StreamedPair:
        source.seek(reference.start)
        content = b""
        while (left := reference.end - reference.start - len(content)) and (read := source.read(left)):
            content += read
        source.seek(reference.start + len(content))
        pair = read_pair(content, reference)
        if pair is None:
            raise ShardError(
                source.url, f"the sample at byte {reference.start:,} is no longer there", 1, reference.start
            )
        return pair

    # ------------------------------------------------------------ the thread

    def _next_item(self) -> _Item:
        if self._read:
            return self._read.pop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._fill, name=f"lane-{self.number}", daemon=True)
            self._thread.start()
        while True:
            if self._closing.is_set():
                raise StoppedError
            try:
                read = self._queue.get(timeout=_POLL)
            except queue.Empty:
                continue
            if isinstance(read, BaseException):
                raise read
            self._read = read[::-1]
            return self._read.pop()

    def _fill(self) -> None:
        try:
            together: list[_Item] = []
            size = 0
            for item in self._items(self._cursor):
                together.append(item)
                size += sum(len(pair.image) for pair in item.pairs)
                if len(together) >= _AT_ONCE or size >= _AT_ONCE_BYTES or item.ends:
                    self._put(together)
                    together, size = [], 0
        except BaseException as error:  # raised again by whoever asks for a pair
            with suppress(StoppedError):
                self._put(error)

    def _put(self, items: list[_Item] | BaseException) -> None:
        while not self._closing.is_set():
            try:
                self._queue.put(items, timeout=_POLL)
            except queue.Full:
                continue
            return
        raise StoppedError

    def _items(self, cursor: Cursor) -> Iterator[_Item]:
        """Everything from a cursor on, without end."""
        while True:
            own = self.shards.of_lane(self.number, cursor.epoch)
            while cursor.place < len(own):
                shard = own[cursor.place]
                begin = self.shards.offset if shard == self.shards.first else 0
                with self.shards.open(shard, begin if cursor.offset < 0 else cursor.offset, self._closing) as source:
                    for sample in read_samples(source, shard, self.ignored):
                        own_turn = not self.shards.shared or cursor.samples % self.shards.lanes == self.number
                        sample, left_out = self.shards.left_out.sift(shard, sample)
                        pairs = self._of_epoch(sample.pairs, cursor.epoch) if own_turn else []
                        cursor = cursor._replace(offset=sample.end, samples=cursor.samples + 1)
                        bad = [f"{self.shards.urls[shard]}, {sample.name}: {why}" for why in sample.bad if own_turn]
                        yield _Item(cursor, pairs, bad, left_out if own_turn else 0)
                cursor = cursor._replace(place=cursor.place + 1, offset=-1)
            cursor = Cursor(cursor.epoch + 1)
            yield _Item(cursor, [], [], ends=True)

    def _of_epoch(self, pairs: list[StreamedPair], epoch: int) -> list[StreamedPair]:
        """All pairs of a sample, or one of them, the next one in the next epoch."""
        if not self.shards.sample_captions or len(pairs) < 2:
            return pairs
        return [pairs[(pairs[0].reference.start + epoch) % len(pairs)]]


def as_references(snapshot: dict[str, Any]) -> dict[str, Any]:
    """A snapshot with places in shards in place of the pairs of the buffer."""
    return snapshot | {"buffer": [pair.reference for pair in snapshot["buffer"]]}


_Look = tuple[int | None, str]


def _differ(before: _Look, now: _Look) -> bool:
    """Whether a shard changed between two looks: its size, or its version where both say one of a kind."""
    if before[0] is not None and now[0] is not None and before[0] != now[0]:
        return True
    then, local = LocalTag.parse(before[1]), LocalTag.parse(now[1])
    if then and local:
        return then.content != local.content or _rewritten(then, local)
    kinds = [tag.partition(" ")[0] for _, tag in (before, now)]
    return kinds[0] == kinds[1] and before[1] != now[1]


def _rewritten(then: LocalTag, local: LocalTag) -> bool:
    return then.place == local.place and then.written != local.written


def _facts(look: _Look) -> str:
    size, tag = look
    local = LocalTag.parse(tag)
    if local:
        written = datetime.fromtimestamp(local.written / 1e9).isoformat(" ", "milliseconds")
        tag = f"content {local.content}, written {written}"
    return ", ".join(filter(None, (f"{size:,} bytes" if size is not None else None, printable(tag, 80))))


def _touch(url: str, before: _Look, now: _Look) -> str:
    """The way out where a shard's time of writing is all that is known to differ."""
    then, local = LocalTag.parse(before[1]), LocalTag.parse(now[1])
    if not then or not local or before[0] != now[0] or then.content != local.content:
        return ""
    when = f"@{then.written // 10**9}.{then.written % 10**9:09d}"
    file = printable(shlex.quote(url.removeprefix("file://")), 300)
    return f"; if you know its content to be the same: touch -d {when} {file}"
