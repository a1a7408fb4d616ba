"""What a run has to know of a stream before its first step, from its first pairs and at most a look at the sizes.

The validation set is the first pairs, up to a place in a shard behind which training begins; a tokenizer is trained on
the first captions; the number of pairs is given, in a sizes.json, or estimated by the bytes of the first ones.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from clip_core.config import DataConfig, TrainConfig, is_streamed
from clip_core.data.dataset import Data, PairList, PairSet, few_classes, load_set, read_val_file
from clip_core.data.hard_negatives import words_of
from clip_core.data.image_files import Member, member_of, read_content
from clip_core.data.pairs import Pair
from clip_core.data.store import EXACT
from clip_core.data.stream.lane import Shards
from clip_core.data.stream.left_out import LeftOut
from clip_core.data.stream.samples import Sample, hash64, read_samples
from clip_core.data.stream.shard_list import ShardList, compare, counted_pairs, list_shards, of_split, total_bytes
from clip_core.data.stream.source import Source, is_remote
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import DataError, RunError, UsageError
from clip_core.files import sha256
from clip_core.network import Preprocessing
from clip_core.run.paths import RunPaths
from clip_core.run.reader import RunReader
from clip_core.run.records import Flags, StreamRecord
from clip_core.text import plural, printable
from clip_core.training.negative_captions import StreamNegatives
from clip_core.training.ranks import Rank

_SAMPLE = 10_000  # pairs that are looked at before the first step, for tokenizer and estimate
_SAMPLE_BYTES = 1_000_000_000
_MOST_VALIDATION = 2_000  # pairs, where their number is not given
_MOST_VAL_FILE = 10_000  # pairs of streamed shards that --val-file names
_TRIES = 3  # before a new run is refused: the cause is mostly a typing error
_NOTED = 5  # kinds of members that are not read
_READERS = 4  # lanes of a process
_SHUFFLE = 5_000  # pairs in the shuffle buffer of a process
_SHUFFLE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class StreamStart:
    """The shards of a run, what is known of them, and the validation pairs.

    Attributes:
        first, offset: the shard, and the byte in it, where the training pairs begin.
        left_out: pairs that are not trained on.
        sample: some pairs; their images cannot be opened.
        epoch_pairs: pairs that count as an epoch; `counted` says by whom.
    """

    shards: ShardList
    val: list[Pair]
    sample: list[Pair]
    epoch_pairs: int
    counted: str
    first: int = 0
    offset: int = 0
    held_out: frozenset[int] = frozenset()
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: list[str] = field(default_factory=list)
    record: StreamRecord | None = None  # of a resumed run

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\0".join(self.shards.names).encode("utf-8", "surrogateescape")).hexdigest()


def begin_stream(config: TrainConfig, run: Path, say: Callable[[str], None]) -> StreamStart:
    """Look at the first pairs of a stream; of remote ones, the validation images are written to the run directory.

    So are the flags of --leave-out, which may change later while this run goes on without their pairs.

    Raises:
        DataError: if a shard cannot be read, or holds nothing to train on.
    """
    data = config.data
    assert data.data_file is not None
    shards, others = of_split(list_shards(data.data_file), "train")
    if others:
        say(
            f"{plural(others, 'shard')} named as val or test {'is' if others == 1 else 'are'} not trained on; those "
            "that --val-file names are validated on"
        )
    say(
        f"{printable(shards.pattern, 200)}: {plural(len(shards.urls), 'shard')}, streamed: read from front to back "
        "while training, nothing is indexed"
    )
    ignored: Counter[str] = Counter()
    most_val = 0 if data.val_file else data.val_pairs or _MOST_VALIDATION
    flags = None if data.leave_out is None else Flags.read(data.leave_out)
    left_out = LeftOut() if flags is None else LeftOut.of(flags, shards)
    head, read, ended = _head(shards, most_val, ignored, say, left_out)
    count = sum(len(sample.pairs) for _, sample in head)
    if not count:
        reasons = [why for _, sample in head for why in sample.bad]
        why = f": {reasons[0]} (the first of {len(reasons):,})" if reasons else ""
        left = f"; --leave-out names {left_out.named:,} of the stream" if left_out.named else ""
        raise DataError(f"{printable(shards.urls[0], 300)} has no usable pair{why}{left}.")
    if flags is not None and data.leave_out is not None:
        say(left_out.sentence(data.leave_out))
        flags.write(RunPaths(run).left_out)
    total, counted = _total(data, shards, count, read, ended, left_out)
    cut = 0
    if data.val_file is None:
        wanted = data.val_pairs or min(max(round(total * data.val_fraction), 2), _MOST_VALIDATION)
        cut = _cut(head, wanted)
        if ended and cut == len(head):
            raise DataError(f"the stream has {plural(count, 'pair')}, and --val-pairs sets {wanted:,} of them aside.")
    val = _validation(head[:cut], shards, run) if cut else _val_file(data, run, say, flags)
    first, offset = (head[cut - 1][0], head[cut - 1][1].end) if cut else (0, 0)
    if cut and cut < len(head) and head[cut][0] != first:
        first, offset = head[cut][0], 0
    aside = len(val) if cut else 0
    held_out = frozenset(pair.image_id for _, sample in head[:cut] for pair in sample.pairs)
    notes = [f"not read: {many:,} {what}" for what, many in ignored.most_common(_NOTED)]
    bad = sum(len(sample.bad) for _, sample in head)
    notes += [f"{bad:,} of the first {count + bad:,} pairs are bad"] * bool(bad)
    epoch_pairs = total if data.epoch_pairs is not None else max(total - aside, 1)
    return StreamStart(
        shards, val, _sample(head, shards), epoch_pairs, counted, first, offset, held_out, left_out, notes
    )


def continue_stream(config: TrainConfig, run: Path, say: Callable[[str], None]) -> StreamStart:
    """The stream of a resumed run, wherever its shards are now.

    Raises:
        RunError: if they are not those that it began with.
    """
    data, record = config.data, StreamRecord.read(RunPaths(run).stream)
    assert data.data_file is not None
    shards, _ = of_split(list_shards(data.data_file), "train")
    difference = compare(record.shards, shards.names)
    if difference is not None:
        raise RunError(
            f"the shards of {printable(shards.pattern, 200)} are not those that {run} was trained on: {difference}; "
            "give the same shards with --data, or start a new run."
        )
    flags = None if data.leave_out is None else _stored_flags(run, record)
    left_out = LeftOut() if flags is None else LeftOut.of(flags, shards)
    if data.val_file is not None and not is_streamed(data.val_file, False):
        val = read_val_file(data.model_copy(update={"leave_out": flags and RunPaths(run).left_out}), say).pairs
        before = [pair.caption for pair in RunReader(run).validation_pairs().pairs]
        if sorted(before) != sorted(pair.caption for pair in val):
            raise RunError(f"the pairs of --val-file {data.val_file} are not those that {run} began with.")
        held_out: frozenset[int] = frozenset()
    else:
        pairs = RunReader(run).validation_pairs().pairs
        places = [_moved(Path(pair.image), run, shards) for pair in pairs]
        val = [Pair(str(place), pair.caption, n) for n, (place, pair) in enumerate(zip(places, pairs, strict=True), 1)]
        held_out = frozenset() if data.val_file else frozenset(hash64(read_content(place)) for place in set(places))
    return StreamStart(
        shards, val, val, record.epoch_pairs, record.counted, record.first, record.offset, held_out, left_out,
        record=record,
    )  # fmt: skip


def load_stream(
    config: DataConfig, start: StreamStart, preprocessing: Preprocessing, say: Callable[[str], None]
) -> Data:
    """The validation set decoded; of the training pairs, the sample.

    Raises:
        DataError: if too many validation pairs are bad.
    """
    assert config.data_file is not None
    file = config.val_file or Path(start.shards.pattern)
    val, store, report = load_set(PairList(file, start.val), preprocessing, config, EXACT, say)
    train = PairSet.from_pairs(start.sample)
    return Data(
        train, val, store, store, few_classes(train, val), report, start.fingerprint, streamed_pairs=start.epoch_pairs
    )


def stream_shards(
    config: TrainConfig, start: StreamStart, batch_size: int, rank: Rank, say: Callable[[str], None]
) -> Shards:
    """The lanes and buffers of a run: those it began with, else those its flags ask for.

    Raises:
        UsageError: if the lanes do not divide the batch, or the processes not the lanes.
    """
    data, record = config.data, start.record
    count = len(start.shards.urls) - start.first
    lanes = record.lanes if record else data.readers or _lanes(count, batch_size, rank.size)
    if lanes % rank.size or batch_size % lanes:
        what = f"this run reads {plural(lanes, 'shard')} at the same time" if record else f"--readers is {lanes}"
        raise UsageError(
            f"{what}, which should be a multiple of the {rank.size} processes and divide the batch of {batch_size} "
            "pairs; choose another number."
        )
    per_process = lanes // rank.size
    buffer = record.buffer_size if record else max((data.shuffle_buffer or _SHUFFLE) // per_process, 1)
    shards = Shards(
        start.shards.urls, config.run.seed, lanes, buffer, _SHUFFLE_BYTES // per_process,
        start.first, start.offset, start.held_out, data.captions == "sample", start.left_out, say,
    )  # fmt: skip
    if record is not None:
        return replace(shards, buffer_bytes=record.buffer_bytes)
    say(
        f"stream: about {start.epoch_pairs:,} pairs in an epoch ({start.counted}); {plural(lanes, 'shard')} read at "
        f"the same time, shuffle buffers of {buffer * lanes:,} pairs in all; an epoch may end within a batch, so that "
        "no pair is dropped or given twice"
    )
    if shards.shared:
        say(
            f"there are {plural(count, 'shard')} for {lanes} readers: each reads all of them and takes every "
            f"{lanes}th sample; more and smaller shards would be read once"
        )
    for note in start.notes:
        say(f"stream: {note}")
    return shards


def stream_negatives(
    start: StreamStart, run: Path, seed: int, tokenizer: Tokenizer, say: Callable[[str], None]
) -> StreamNegatives:
    """Hard negatives with the words of the first captions, or of those that a resumed run began with.

    Raises:
        UsageError: if none can be made.
        RunError: if a resumed run has no words.
    """
    if start.record is not None:
        if start.record.words is None:
            raise RunError(f"{RunPaths(run).stream} has no words of hard negatives; put the file back.")
        return StreamNegatives(start.record.words, seed, tokenizer)
    captions = [pair.caption for pair in start.sample]
    negatives = StreamNegatives(words_of(captions), seed, tokenizer)
    say(
        f"hard negatives for {negatives.make.share(captions):.0%} of the first {plural(len(captions), 'caption')} of "
        f"the stream, whose words they are made of: swapped, replaced, shuffled"
    )
    return negatives


def write_stream(run: Path, start: StreamStart, shards: Shards, negatives: StreamNegatives | None) -> None:
    """stream.json, by which a resumed run recognises its shards."""
    StreamRecord(
        shards=start.shards.names,
        lanes=shards.lanes,
        buffer_size=shards.buffer_size,
        buffer_bytes=shards.buffer_bytes,
        first=start.first,
        offset=start.offset,
        epoch_pairs=start.epoch_pairs,
        counted=start.counted,
        left_out=sha256(RunPaths(run).left_out) if RunPaths(run).left_out.is_file() else None,
        words=None if negatives is None else {name: list(words) for name, words in negatives.words.items()},
    ).write(RunPaths(run).stream)


def _stored_flags(run: Path, record: StreamRecord) -> Flags:
    """The flags that a run began with.

    Raises:
        RunError: if they are missing or have changed.
    """
    path = RunPaths(run).left_out
    flags = Flags.read(path)
    if sha256(path) != record.left_out:
        raise RunError(f"{path} was changed since the run began without its pairs; put it back, or start a new run.")
    return flags


# ---------------------------------------------------------------- the first pairs


def _head(
    shards: ShardList,
    most_images: int,
    ignored: Counter[str],
    say: Callable[[str], None],
    left_out: LeftOut,
    most: int = _SAMPLE,
) -> tuple[list[tuple[int, Sample]], int, bool]:
    """The first samples, each with the number of its shard; the bytes that they take; whether they are all there are.

    Only the first `most_images` pairs keep their images.
    """
    found: list[tuple[int, Sample]] = []
    pairs = size = 0
    for number, url in enumerate(shards.urls):
        last = 0
        with Source(url, say=say, tries=_TRIES if is_remote(url) else 1) as source:
            for sample in read_samples(source, number, ignored):
                sample, _ = left_out.sift(number, sample)
                if pairs >= most_images:
                    sample = sample._replace(pairs=[pair._replace(image=b"") for pair in sample.pairs])
                found.append((number, sample))
                pairs += len(sample.pairs)
                size, last = size + sample.end - last, sample.end
                if pairs >= max(most, most_images) or size >= _SAMPLE_BYTES:
                    return found, size, False
    return found, size, True


def _sample(head: list[tuple[int, Sample]], shards: ShardList) -> list[Pair]:
    """The first pairs, for their captions; their images are nowhere."""
    names = shards.names
    pairs = ((names[number], pair) for number, sample in head for pair in sample.pairs)
    return [Pair(f"{name}/{pair.name}", pair.caption, n) for n, (name, pair) in enumerate(pairs, start=1)]


def _total(
    data: DataConfig, shards: ShardList, count: int, size: int, ended: bool, left_out: LeftOut
) -> tuple[int, str]:
    """Pairs of an epoch, and where the number is from."""
    if data.epoch_pairs is not None:
        return data.epoch_pairs, "--epoch-pairs"
    if ended:
        return count, "counted"
    known = counted_pairs(shards)
    if known is not None and known >= count:
        return max(known - left_out.named, count), "sizes.json"
    total = total_bytes(shards)
    if total is None:
        raise UsageError("the server does not say how large the shards are; give --epoch-pairs N.")
    return max(round(count * total / size), count), f"estimated by the first {count:,}"


def _cut(head: list[tuple[int, Sample]], wanted: int) -> int:
    """The number of samples that have the wanted number of pairs, or all."""
    pairs = 0
    for number, (_, sample) in enumerate(head, start=1):
        pairs += len(sample.pairs)
        if pairs >= wanted:
            return number
    return len(head)


def _validation(head: list[tuple[int, Sample]], shards: ShardList, run: Path) -> list[Pair]:
    """Pairs whose images are where everything can open them: members of local shards, else files of the run."""
    places: dict[int, str] = {}
    pairs: list[Pair] = []
    names = shards.names
    for number, sample in head:
        for pair in sample.pairs:
            if pair.image_id not in places:
                if is_remote(shards.urls[number]):
                    path = RunPaths(run).validation_images / f"{len(places):06d}{Path(pair.name).suffix.lower()}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(pair.image)
                else:
                    shard = Path(shards.urls[number].removeprefix("file://"))
                    path = Member(shard, sample.offset, len(pair.image)).path(pair.name)
                places[pair.image_id] = str(path.absolute())
            name = f"{names[number]}/{pair.name}"
            pairs.append(Pair(places[pair.image_id], pair.caption, len(pairs) + 1, name))
    return pairs


def _val_file(data: DataConfig, run: Path, say: Callable[[str], None], flags: Flags | None) -> list[Pair]:
    """The pairs of --val-file, which may be shards to stream; of those, the first."""
    assert data.val_file is not None
    if not is_streamed(data.val_file, False):
        return read_val_file(data, say).pairs
    shards, _ = of_split(list_shards(data.val_file), "val")
    left_out = LeftOut() if flags is None else LeftOut.of(flags, shards)
    head, _, ended = _head(shards, _MOST_VAL_FILE, Counter(), say, left_out, _MOST_VAL_FILE)
    if not ended:
        say(f"--val-file: the first {_MOST_VAL_FILE:,} pairs of it are the validation set")
    pairs = _validation(head, shards, run)
    if not pairs:
        raise DataError(f"--val-file {printable(shards.pattern, 200)} has no usable pair.")
    return pairs


def _moved(image: Path, run: Path, shards: ShardList) -> Path:
    """Where a validation image of a run is, if the run or its shards were moved."""
    kept = RunPaths(run).validation_images / image.name
    if image.parent.name == kept.parent.name and kept.is_file():
        return kept
    member = member_of(image)
    if member is None:
        return image
    urls = (url for url, name in zip(shards.urls, shards.names, strict=True) if str(member.shard).endswith(name))
    return member._replace(shard=Path(next(urls, str(member.shard)))).path(image.name)


def _lanes(shards: int, batch_size: int, processes: int) -> int:
    """At most four for each process and no more than there are shards; the processes and the batch can be divided."""
    most = max(min(_READERS * processes, shards), processes)
    return max(n for n in range(processes, most + 1, processes) if batch_size % n == 0)
