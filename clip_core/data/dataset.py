"""Pairs ready to train on: distinct images and captions, the split, and the classes where there are few.

Shapes: P pairs, I distinct images, T distinct normalised captions.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from clip_core.config import DataConfig
from clip_core.data.describe import two_lines
from clip_core.data.formats.detect import Reading, read_data
from clip_core.data.formats.source import ReadOptions
from clip_core.data.pairs import Pair, Report, distinct_images, fingerprint, sort_pairs
from clip_core.data.progress import DecodeProgress
from clip_core.data.splits import Split, split_training, split_validation
from clip_core.data.store import EXACT, Decoder, Images, ImageStore
from clip_core.data.synthetic import DEFAULT_SYNTHETIC, create_synthetic
from clip_core.errors import DataError, UsageError
from clip_core.network import Preprocessing
from clip_core.run.records import Flags
from clip_core.text import normalise_caption, plural, printable

IntArray = NDArray[np.int64]

MAX_CLASSES = 100  # more distinct captions than this are not classes
MIN_CLASS_IMAGES = 5  # nor are captions with fewer images than this on average


@dataclass
class PairSet:
    """Pairs as rows into distinct images and distinct captions.

    Two pairs match if and only if they share a row of either: the same image, or the same caption.
    """

    images: list[Path]  # I distinct images
    captions: list[str]  # T distinct captions, each as it was first spelt
    pair_images: IntArray  # (P,) rows of `images`
    pair_captions: IntArray  # (P,) rows of `captions`
    names: list[str] = field(default_factory=list)  # I paths below the image root, by which the split goes

    @classmethod
    def from_pairs(cls, pairs: Sequence[Pair]) -> Self:
        image_rows: dict[str, int] = {}
        caption_rows: dict[str, int] = {}
        names: list[str] = []
        captions: list[str] = []
        rows = np.empty((len(pairs), 2), dtype=np.int64)
        for number, pair in enumerate(pairs):
            if pair.path not in image_rows:
                image_rows[pair.path] = len(image_rows)
                names.append(pair.name or pair.path)
            same = normalise_caption(pair.caption)
            if same not in caption_rows:
                caption_rows[same] = len(caption_rows)
                captions.append(pair.caption)
            rows[number] = image_rows[pair.path], caption_rows[same]
        return cls(list(map(Path, image_rows)), captions, rows[:, 0].copy(), rows[:, 1].copy(), names)

    def __len__(self) -> int:
        return len(self.pair_images)

    def subset(self, image_mask: NDArray[np.bool_]) -> Self:
        """The pairs of some images, (I,) of bool, with rows renumbered."""
        kept = image_mask[self.pair_images]
        images = np.flatnonzero(image_mask)
        captions = np.unique(self.pair_captions[kept])
        return type(self)(
            [self.images[row] for row in images],
            [self.captions[row] for row in captions],
            np.searchsorted(images, self.pair_images[kept]),
            np.searchsorted(captions, self.pair_captions[kept]),
            [self.names[row] for row in images] if self.names else [],
        )


@dataclass(frozen=True)
class Data:
    """What a training run needs; each store's rows are those of its set's `images`."""

    train: PairSet
    val: PairSet
    train_store: Images
    val_store: Images
    classes: list[str] | None  # captions as classes, where there are few
    report: Report
    fingerprint: str  # of the training list, and of a validation list after a "-"; the same wherever the data are
    streamed_pairs: int | None = None  # of a stream, of which `train` is a sample: pairs that count as an epoch

    @property
    def train_pairs(self) -> int:
        """Training pairs; of a stream, about as many."""
        return len(self.train) if self.streamed_pairs is None else self.streamed_pairs


def split_by_image(pairset: PairSet, val_fraction: float, seed: int) -> tuple[PairSet, PairSet]:
    """Hold out a share of the images, each with all its captions.

    An image's place is drawn from the seed and its name alone: the order of the list and its folder
    in change nothing, and a few images more or less move only a few others.

    Returns:
        (train, val), neither of them empty.
    Raises:
        DataError: if there are fewer than two images.
    """
    count = len(pairset.images)
    if count < 2:
        raise DataError("one image cannot be split into training and validation; give more images, or --val-file.")
    names = pairset.names or [str(path) for path in pairset.images]
    draws = [hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest() for name in names]
    validation = min(max(round(val_fraction * count), 1), count - 1)
    mask = np.zeros(count, dtype=np.bool_)
    mask[sorted(range(count), key=lambda row: draws[row])[:validation]] = True
    return pairset.subset(~mask), pairset.subset(mask)


def few_classes(train: PairSet, val: PairSet) -> list[str] | None:
    """The captions as class names, sorted, if they look like classes; else None.

    They do where no image has two captions, both sets together have at most 100 distinct captions, and each
    caption has five images or more on average.
    """
    spelling: dict[str, str] = {}
    for text in (*train.captions, *val.captions):
        spelling.setdefault(normalise_caption(text), text)
    images = len(train.images) + len(val.images)
    few = 2 <= len(spelling) <= MAX_CLASSES and images >= MIN_CLASS_IMAGES * len(spelling)
    if not few or _several_captions(train) or _several_captions(val):
        return None
    return sorted(spelling.values())


class PairList(NamedTuple):
    """Pairs of a file for one use, before their images are decoded."""

    file: Path
    pairs: list[Pair]


def read_lists(config: DataConfig, seed: int, say: Callable[[str], None]) -> list[PairList]:
    """The training pairs, created first if --create-synthetic asks for it, and the validation pairs, if there are any.

    Those are of --val-file, or of the val or test split that the training list states; without either the caller
    splits the training images.

    Raises:
        DataError: if a list cannot be read.
        UsageError: if there is no list to read.
    """
    file = _data_file(config, seed, say)
    reading = _read(file, config, say)
    split = split_training(reading.pairs, reading.columns, val_file=config.val_file is not None)
    lists = [PairList(file, split.train)]
    _say_split(file, split, say)
    if config.val_file is not None:
        return [*lists, read_val_file(config, say)]
    return lists if split.val is None else [*lists, PairList(file, split.val)]


def read_val_file(config: DataConfig, say: Callable[[str], None]) -> PairList:
    """The pairs of --val-file.

    Raises:
        DataError: if it cannot be read.
    """
    assert config.val_file is not None
    reading = _read(config.val_file, config, say)
    split = split_validation(reading.pairs, reading.columns)
    _say_split(config.val_file, split, say)
    return PairList(config.val_file, list(split.val or []))


def load_data(
    config: DataConfig,
    preprocessing: Preprocessing,
    seed: int,
    say: Callable[[str], None],
    decoder: Decoder = EXACT,
    lists: Sequence[PairList] | None = None,
) -> Data:
    """From the configuration to pairs and images: read, decode once, drop bad pairs, split.

    Args:
        config: where the pairs are, and what to do with bad ones.
        preprocessing: how the stored images are resized and cropped.
        seed: of the drawing and of the split.
        say: takes one sentence at a time for the person who watches.
        decoder: of the images to train on; validation images are always decoded exactly as in inference.
        lists: as `read_lists` returns them; None reads them.
    Raises:
        DataError: if a list cannot be read, too many of its pairs are bad, or nothing is left to train on.
        UsageError: if there is no list to read.
    """
    lists = lists or read_lists(config, seed, say)
    sets, stores, reports = [], [], []
    for one, how in zip(lists, (decoder, EXACT), strict=False):
        store, report = _load_list(one, preprocessing, config, how, say)
        stores.append(store)
        reports.append(report)
        sets.append(PairSet.from_pairs(report.good))
    if len(lists) == 1:
        train, val = split_by_image(sets[0], config.val_fraction, seed)
        same = decoder is EXACT
        stores.append(stores[0] if same else _decoded(val.images, preprocessing, config, EXACT, say))
    else:
        train, val = sets
        _say_shared(train, val, say)
    train_store, val_store = (_rows_of(part, store) for part, store in zip((train, val), stores, strict=True))
    report = Report([p for r in reports for p in r.good], [b for r in reports for b in r.bad])
    identity = "-".join(fingerprint(pairs) for _, pairs in lists)
    return Data(train, val, train_store, val_store, few_classes(train, val), report, identity)


def load_set(
    listed: PairList,
    preprocessing: Preprocessing,
    config: DataConfig,
    decoder: Decoder,
    say: Callable[[str], None],
) -> tuple[PairSet, ImageStore, Report]:
    """The usable pairs of one list, and their images decoded.

    Raises:
        DataError: if too many of them are bad.
    """
    store, report = _load_list(listed, preprocessing, config, decoder, say)
    pairs = PairSet.from_pairs(report.good)
    return pairs, _rows_of(pairs, store), report


def _load_list(
    listed: PairList,
    preprocessing: Preprocessing,
    config: DataConfig,
    decoder: Decoder,
    say: Callable[[str], None],
) -> tuple[ImageStore, Report]:
    """Decode the images of a list, and sort its pairs."""
    file, pairs = listed
    store = _decoded(distinct_images(pairs), preprocessing, config, decoder, say)
    report = sort_pairs(pairs, {store.paths[row]: why for row, why in store.failures.items()})
    say(printable(f"{file}: {report.sentence()}"))
    refuse_bad(file, report, config)
    return store, report


def _read(file: Path, config: DataConfig, say: Callable[[str], None]) -> Reading:
    """The pairs of a file; two lines say how it was read."""
    with DecodeProgress(say, f"reading {file.name}", unit="B") as progress:
        reading = read_data(file, ReadOptions.of(config), progress)
    for line in two_lines(reading):
        say(line)
    return without_flagged(reading, config.leave_out, say) if config.leave_out else reading


def without_flagged(reading: Reading, flags: Path, say: Callable[[str], None]) -> Reading:
    """Without the pairs that a flags.json names; says how many.

    Raises:
        RunError: if it cannot be read.
    """
    flagged = {(pair.image, pair.caption) for pair in Flags.read(flags).pairs}
    kept = [pair for pair in reading.pairs if (pair.path, pair.caption) not in flagged]
    left_out = len(reading.pairs) - len(kept)
    say(f"{plural(left_out, 'pair')} of {printable(str(reading.path))} left out by {printable(str(flags))}.")
    return replace(reading, pairs=kept)


def _say_split(file: Path, split: Split, say: Callable[[str], None]) -> None:
    if split.said is not None:
        say(printable(f"{file}: {split.said}."))


def _decoded(
    paths: list[Path], preprocessing: Preprocessing, config: DataConfig, decoder: Decoder, say: Callable[[str], None]
) -> ImageStore:
    with DecodeProgress(say) as progress:
        store = ImageStore.build(
            paths, preprocessing, cache_gb=config.cache_gb, workers=config.workers, decoder=decoder, progress=progress
        )
    if not store.cached:
        say(f"{len(paths):,} decoded images need more than --cache-gb {config.cache_gb:g}: each use decodes them.")
    return store


def _rows_of(part: PairSet, store: ImageStore) -> ImageStore:
    """The images of a set, in its order."""
    row_of = {path: row for row, path in enumerate(store.paths)}
    return store.subset(np.array([row_of[path] for path in part.images], dtype=np.int64))


def _data_file(config: DataConfig, seed: int, say: Callable[[str], None]) -> Path:
    """The list to train on, created if requested and missing."""
    if not config.create_synthetic:
        if config.data_file is None:
            raise UsageError("no pairs to train on; give --data PATH, or --create-synthetic.")
        return config.data_file
    data_file = config.data_file or DEFAULT_SYNTHETIC
    if data_file.exists():
        say(printable(f"{data_file} exists, so no shapes are drawn."))
        return data_file
    drawn = create_synthetic(
        data_file,
        count=config.synthetic_count,
        seed=seed,
        size=config.synthetic_size,
        holdout_combinations=config.holdout_combinations,
    )
    say(printable(drawn.sentence()))
    return data_file


def refuse_bad(file: Path, report: Report, config: DataConfig) -> None:
    """Raise DataError if bad pairs may not be skipped, or are too many."""
    if not report.bad:
        return
    first, count = report.bad[0], len(report.bad)
    where = f"{file}, {first.pair.place}: {first.reason}"
    affected = f"{count:,} of {report.total:,} pairs {'is' if count == 1 else 'are'} affected"
    if config.bad_pairs == "refuse":
        raise DataError(f"{where}. {affected}; skip with --bad-pairs skip, or correct the list.")
    if not report.good:
        raise DataError(f"{where}. All {count:,} pairs are affected; correct the list or --image-root.")
    if report.bad_share > config.max_bad_share:
        raise DataError(
            f"{where}. {affected}, more than --max-bad-share {config.max_bad_share:g} allows; "
            "correct the list or --image-root, or raise it."
        )


def _say_shared(train: PairSet, val: PairSet, say: Callable[[str], None]) -> None:
    shared = len(set(train.images) & set(val.images))
    if shared:
        say(f"{shared:,} images are in both sets: the validation scores include training images.")


def _several_captions(pairset: PairSet) -> bool:
    """Whether any image has more than one distinct caption."""
    rows = np.stack([pairset.pair_images, pairset.pair_captions], axis=1)
    return len(np.unique(rows, axis=0)) > len(pairset.images)
