"""Some shards read at the same time, each from front to back by a thread, while other threads measure their images.

Of a pair its place, its caption and what was measured are kept, all in the order of the shards, whichever were faster.
"""

import queue
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from clip_core.data.check import DamagedShard
from clip_core.data.check_images import image_row
from clip_core.data.embedding_file import EmbeddingModel
from clip_core.data.image_files import member_path
from clip_core.data.pairs import reason
from clip_core.data.preprocess import Pixels, load_bytes, resize_and_crop
from clip_core.data.progress import Progress, run_interruptibly
from clip_core.data.stream.left_out import LeftOut
from clip_core.data.stream.samples import Sample, read_samples
from clip_core.data.stream.shard_list import ShardList, shown_url
from clip_core.data.stream.source import ShardError, Source, StoppedError, is_remote
from clip_core.data.stream.table import Seen, StreamTable
from clip_core.errors import ImageError
from clip_core.text import plural

READERS = 4  # shards read at the same time
_TRIES = 3  # of a remote shard
_HOPELESS = 8  # shards that cannot be read before any that can
_AT_ONCE, _AT_ONCE_BYTES = 32, 1 << 20  # samples that a reader hands over together
_EMBEDDED = 8  # images embedded at a time, so that an interrupt waits for no more
_POLL = 0.2  # seconds


class _Batch(NamedTuple):
    """Samples of a shard: of the `place`-th that is read, its `number`-th."""

    place: int
    number: int
    samples: list[Sample]


@dataclass
class _End:
    """A shard was read, in so many batches; `endless`: the empty blocks that end a tar are missing."""

    place: int
    batches: int = 0
    error: ShardError | None = None
    ignored: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    endless: bool = False


@dataclass
class _Open:
    """A shard that is being read, and the batches that were measured before one that precedes them."""

    table: StreamTable
    waiting: dict[int, list[Seen]] = field(default_factory=dict)
    settled: int = 0
    end: _End | None = None


class ShardPass:
    """The shards with these numbers, the first `most` pairs of each."""

    def __init__(
        self,
        shards: ShardList,
        numbers: list[int],
        most: int | None,
        leave_out: LeftOut,
        model: EmbeddingModel | None,
    ) -> None:
        self.shards, self.numbers, self.most = shards, numbers, most
        self._model, self._encoding = model, threading.Lock()
        self.table = StreamTable(embeddings=model.file if model else None)
        self.damaged: list[DamagedShard] = []
        self.ignored: Counter[str] = Counter()
        self.left_out = 0
        self.endless: list[str] = []  # shards without the end of a tar
        self._leave_out, self._names = leave_out, shards.names
        self._open: dict[int, _Open] = {}
        self._next = 0  # shard of the table
        self._parts = [0.0] * len(numbers)  # of each shard that was read, 0 to 1
        self._todo = iter(range(len(numbers)))
        self._lock, self._closing = threading.Lock(), threading.Event()
        # A SimpleQueue, as an interrupt may leave the lock of a Queue in a wrong state; the semaphore bounds it.
        self._queue: queue.SimpleQueue[_Batch | _End | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(2 * READERS)

    def read(self, readers: int, workers: int, progress: Progress) -> None:
        """Read and measure everything.

        Raises:
            DataError: if no shard can be read.
            KeyboardInterrupt: saying how many images were checked.
        """
        done = 0
        for _ in range(readers):
            threading.Thread(target=self._reader, name="shards", daemon=True).start()
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            try:
                for count in run_interruptibly(pool, workers, self._measure, self._batches(), self._closing.set):
                    done += count
                    self._settle()
                    part = sum(self._parts) / len(self._parts)
                    if done and part:
                        progress(done, max(round(done / part), done))
                self._settle()
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"about {sum(self._parts) / len(self._parts):.0%} of the stream, "
                    f"{plural(done, 'image')}, checked; nothing is reported"
                ) from None
            finally:
                self._closing.set()

    def _batches(self) -> Iterator[_Batch]:
        """What the readers hand over, until all shards were read."""
        ended, any_read = 0, False
        failed: list[tuple[int, ShardError]] = []
        while ended < len(self.numbers):
            try:
                event = self._queue.get(timeout=_POLL)
            except queue.Empty:
                continue
            self._room.release()
            if isinstance(event, BaseException):
                raise event
            if event.place not in self._open:
                self._open[event.place] = _Open(self._table(event.place))
            if isinstance(event, _Batch):
                any_read = True
                yield event
                continue
            self._open[event.place].end = event
            ended += 1
            if event.error is not None:
                failed.append((event.place, event.error))
                if len(failed) >= _HOPELESS and not any_read:
                    raise min(failed, key=lambda one: one[0])[1]

    def _table(self, place: int) -> StreamTable:
        number = self.numbers[place]
        return StreamTable(shown_url(self.shards.urls[number]), self._names[number], self.table.embeddings)

    def _settle(self) -> None:
        """Take over what was measured, in the order of the shards."""
        for shard in list(self._open.values()):
            while (seen := shard.waiting.pop(shard.settled, None)) is not None:
                shard.settled += 1
                for one in seen:
                    shard.table.add(one)
        while (first := self._open.get(self._next)) and first.end and first.settled == first.end.batches:
            self._close_shard(self._open.pop(self._next), first.end)
            self._next += 1

    def _close_shard(self, shard: _Open, end: _End) -> None:
        url = shown_url(self.shards.urls[self.numbers[end.place]])
        if end.error is not None:
            self.damaged.append(DamagedShard(url, end.error.why, end.error.place, shard.table.count))
        if end.endless:
            self.endless.append(url)
        self.ignored.update(end.ignored)
        self.left_out += end.left_out
        self.table.join(shard.table)

    # ------------------------------------------------------------ threads that decode

    def _measure(self, batch: _Batch) -> int:
        """Measure the images of a batch; returns how many, 0 where it is asked to end."""
        shard = shown_url(self.shards.urls[self.numbers[batch.place]])
        seen = []
        for sample in batch.samples:
            if self._closing.is_set():
                return 0
            seen.append(_seen(shard, sample))
        if self._model is not None and self._model.file.problem is None:
            seen = self._embedded(self._model, seen, batch.samples)
        self._open[batch.place].waiting[batch.number] = seen
        return sum(bool(one.captions) for one in seen)

    def _embedded(self, model: EmbeddingModel, seen: list[Seen], samples: list[Sample]) -> list[Seen]:
        """The same with embeddings of the images that can be used; one thread at a time embeds."""
        pixels: dict[int, Pixels] = {}
        for place, (one, sample) in enumerate(zip(seen, samples, strict=True)):
            if one.facts is not None and not self._closing.is_set():
                try:
                    image = load_bytes(sample.pairs[0].image, sample.name)
                    pixels[place] = resize_and_crop(image, model.embedder.preprocessing)
                except ImageError as error:  # so narrow that the model cannot have it
                    seen[place] = one._replace(facts=None, failure=reason(error))
        order = list(pixels)
        for places in (order[at : at + _EMBEDDED] for at in range(0, len(order), _EMBEDDED)):
            with self._encoding:
                if self._closing.is_set():
                    return seen
                embeddings = model.embedder.encode(np.stack([pixels[place] for place in places]))
            for place, embedding in zip(places, embeddings, strict=True):
                seen[place] = seen[place]._replace(embedding=embedding)
        return seen

    # ------------------------------------------------------------ threads that read

    def _reader(self) -> None:
        """Read one shard after the other."""
        try:
            while True:
                with self._lock:
                    place = next(self._todo, None)
                if place is None:
                    return
                self._read_shard(place)
        except StoppedError:
            pass
        except BaseException as error:  # raised again by the thread that waits
            with suppress(StoppedError):
                self._put(error)

    def _read_shard(self, place: int) -> None:
        number = self.numbers[place]
        url = self.shards.urls[number]
        end = _End(place)
        together: list[Sample] = []
        pairs = size = 0

        def samples(source: Source) -> Iterator[Sample]:
            tail = yield from read_samples(source, number, end.ignored)
            end.endless = tail.end == source.size
            if tail.behind:
                why = f"empty blocks at byte {tail.end:,} end it, and something else follows at byte {tail.behind:,}"
                raise ShardError(url, why, place=tail.end)

        try:
            with Source(url, closing=self._closing, tries=_TRIES if is_remote(url) else 1) as source:
                for sample in samples(source):
                    kept, left_out = self._leave_out.sift(number, sample)
                    together.append(kept)
                    end.left_out += left_out
                    pairs += len(kept.pairs) + len(kept.bad)
                    size += sample.end - sample.start
                    if len(together) >= _AT_ONCE or size >= _AT_ONCE_BYTES:
                        self._put(_Batch(place, end.batches, together))
                        together, size = [], 0
                        end.batches += 1
                        self._parts[place] = self._part(sample.end, source.size, pairs)
                    if self.most is not None and pairs >= self.most:
                        break
        except ShardError as error:
            end.error = error
        if together:
            self._put(_Batch(place, end.batches, together))
            end.batches += 1
        self._parts[place] = 1.0
        self._put(end)

    def _part(self, end: int, size: int | None, pairs: int) -> float:
        """The share of a shard that was read."""
        return min(max(end / size if size else 0.0, pairs / self.most if self.most else 0.0), 1.0)

    def _put(self, event: _Batch | _End | BaseException) -> None:
        while not self._closing.is_set():
            if self._room.acquire(timeout=_POLL):
                self._queue.put(event)
                return
        raise StoppedError


def _seen(shard: str, sample: Sample) -> Seen:
    """A sample when its image was measured, which nobody holds any longer."""
    captions = [pair.caption for pair in sample.pairs]
    seen = Seen(sample.name, sample.offset, sample.size, captions, sample.bad)
    if not captions:
        return seen
    try:
        path = member_path(shard, sample.offset, sample.size, sample.name)
        return seen._replace(facts=image_row(path, sample.pairs[0].image))
    except ImageError as error:
        return seen._replace(failure=reason(error))
