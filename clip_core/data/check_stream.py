"""A stream of shards read once for `clip-data check`: its pairs, and what is measured of their images."""

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clip_core.data.check import DamagedShard
from clip_core.data.check_images import Measured
from clip_core.data.check_page import thumbnail
from clip_core.data.describe import spread
from clip_core.data.embedding_file import EmbeddingModel
from clip_core.data.formats.detect import Reading
from clip_core.data.pairs import decoding_threads
from clip_core.data.progress import Progress, no_progress
from clip_core.data.stream.left_out import LeftOut
from clip_core.data.stream.shard_list import JOINT, ShardList, list_shards, of_split, shown_url
from clip_core.data.stream.shard_pass import READERS, ShardPass
from clip_core.data.stream.source import ShardError, is_remote, read_range
from clip_core.errors import DataError
from clip_core.run.records import Flags
from clip_core.text import plural, printable

_SIDE = 256  # of a small image, pixels
_AT_ONCE = 8  # of them


@dataclass(frozen=True)
class StreamOptions:
    """How much of a stream is checked, and how it is read.

    Attributes:
        shards: as many, spread evenly over all.
        pairs: as many, equally from the front of each of these.
        readers: shards read at the same time.
        workers: decoding threads; None is one a core.
    """

    shards: int | None = None
    pairs: int | None = None
    readers: int | None = None
    workers: int | None = None


@dataclass(frozen=True)
class StreamReading(Reading):
    """A stream that was read once.

    Attributes:
        shards: all that the path names; `checked` of them were read.
        measured: its images.
        damaged: shards that could not be read to their end.
        left_out: how many pairs were not looked at, as flags.json names them.
    """

    shards: ShardList
    checked: int
    measured: Measured
    damaged: list[DamagedShard]
    left_out: int

    @cached_property
    def remote(self) -> dict[str, str]:
        """The URL of each remote shard by its name in paths."""
        return {shown_url(url): url for url in self.shards.urls if is_remote(url)}


def read_stream(
    path: Path,
    split: str,
    options: StreamOptions,
    flags: Flags | None = None,
    progress: Progress = no_progress,
    model: EmbeddingModel | None = None,
) -> StreamReading:
    """Read the shards that a path names, and measure every image.

    Args:
        split: "train" or "val": shards that are named as of another are not read.
        flags: pairs that are not looked at.
        progress: takes the images measured so far, and about how many there are.
        model: embeds every image.
    Raises:
        DataError: if the path names no shard, or none that can be read.
        KeyboardInterrupt: saying how many images were checked.
    """
    listed, others = of_split(list_shards(path), split)
    numbers = spread(range(len(listed.urls)), options.shards or len(listed.urls))
    most = None if options.pairs is None else -(-options.pairs // len(numbers))
    left_out = LeftOut() if flags is None else LeftOut.of(flags, listed)
    found = ShardPass(listed, numbers, most, left_out, model)
    found.read(min(options.readers or READERS, len(numbers)), decoding_threads(options.workers), progress)
    if not found.table.count and not found.left_out:
        _refuse_empty(listed, found.damaged)
    shown = JOINT.join(map(shown_url, listed.pattern.split(JOINT)))
    return StreamReading(
        Path(shown), "webdataset", f"{plural(len(listed.urls), 'shard')}, streamed", Path(listed.root), {},
        found.table.pairs(), list(_notes(found, others)), dict(found.ignored.most_common()), listed, len(numbers),
        found.table.measured(), found.damaged, found.left_out,
    )  # fmt: skip


def fetch_small(urls: Mapping[str, str], images: Iterable[str], progress: Progress = no_progress) -> dict[str, bytes]:
    """Small JPEGs of images of remote shards by their paths; each is asked for by its bytes alone, a few at a time.

    Those that cannot be are left out: a server may only begin at the beginning of a file.

    Args:
        urls: of the shards, by their names in paths.
        images: paths; those of other shards are left out.
    """
    wanted = [image for image in dict.fromkeys(images) if image.rpartition("!/")[0] in urls]
    left, found = iter(wanted), queue.SimpleQueue[tuple[str, bytes | None] | Exception]()
    lock = threading.Lock()

    def fetch() -> None:
        while True:
            with lock:
                image = next(left, None)
            if image is None:
                return
            try:
                found.put((image, _small(urls, image)))
            except Exception as error:  # raised again below
                found.put(error)

    for _ in range(_AT_ONCE):  # as daemons: an interrupt does not wait for a silent server
        threading.Thread(target=fetch, name="images", daemon=True).start()
    small: dict[str, bytes] = {}
    for done in range(len(wanted)):
        result = found.get()
        if isinstance(result, Exception):
            raise result
        image, content = result
        if content is not None:
            small[image] = content
        progress(done + 1, len(wanted))
    return small


def _small(urls: Mapping[str, str], image: str) -> bytes | None:
    shard, _, member = image.rpartition("!/")
    offset, size = map(int, member.partition("/")[0].split("+"))
    try:
        return thumbnail(image, _SIDE, read_range(urls[shard], offset, size))
    except DataError:
        return None


def _notes(found: ShardPass, others: int) -> Iterator[str]:
    total, read = len(found.shards.urls), len(found.numbers)
    if read < total or found.most is not None:
        front = "" if found.most is None else f", the first {plural(found.most, 'pair')} of each"
        yield f"a sample was checked: {read:,} of {plural(total, 'shard')}{', spread evenly' * (read < total)}{front}"
    if others:
        yield f"{plural(others, 'shard')} named as of another split not read; name those of val with --val-file"
    if found.endless:
        count, first = plural(len(found.endless), "shard"), printable(found.endless[0], 100)
        yield f"{count} without the empty blocks that end a tar, perhaps cut off ({first})"


def _refuse_empty(shards: ShardList, damaged: list[DamagedShard]) -> None:
    if damaged:
        raise ShardError(damaged[0].shard, damaged[0].why)
    raise DataError(
        f"{printable(shown_url(shards.pattern))} holds no images with captions; a shard should hold cat.jpg and "
        "cat.txt, one after the other."
    )
