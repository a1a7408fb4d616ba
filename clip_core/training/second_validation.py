"""The second validation set: pairs unlike the training data, evaluated beside the first set to detect forgetting."""

from collections.abc import Callable

import numpy as np

from clip_core.config import DataConfig, TuneConfig
from clip_core.data.dataset import PairSet, refuse_bad
from clip_core.data.describe import two_lines
from clip_core.data.formats.detect import read_data
from clip_core.data.formats.source import ReadOptions
from clip_core.data.pairs import Pair, distinct_images, sort_pairs
from clip_core.data.splits import split_validation
from clip_core.data.store import ImageStore
from clip_core.data.tokenizer import Tokenizer
from clip_core.network import Preprocessing
from clip_core.text import printable
from clip_core.training.evaluate import ValidationSet


def read_second_validation(tune: TuneConfig) -> list[Pair]:
    """Its pairs, in any format that is recognised; images are not decoded.

    Raises:
        DataError: if it is missing or no list of pairs.
    """
    return _read(tune)[0]


def _read(tune: TuneConfig) -> tuple[list[Pair], list[str]]:
    """The pairs for validation, and what is said of how they were read."""
    if tune.guard_data is None:
        return [], []
    reading = read_data(tune.guard_data, ReadOptions(tune.guard_root))
    split = split_validation(reading.pairs, reading.columns)
    said = [f"{tune.guard_data}: {split.said}."] if split.said is not None else []
    return split.val or [], [*two_lines(reading), *map(printable, said)]


def load_second_validation(
    tune: TuneConfig,
    data: DataConfig,
    preprocessing: Preprocessing,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
) -> ValidationSet | None:
    """Its pairs and images, checked as the training data are; None without --guard-data.

    Raises:
        DataError: if the list cannot be read, or too many of its pairs are invalid.
    """
    if tune.guard_data is None:
        return None
    pairs, said = _read(tune)
    for line in said:
        say(line)
    store = ImageStore.build(distinct_images(pairs), preprocessing, cache_gb=data.cache_gb, workers=data.workers)
    report = sort_pairs(pairs, {store.paths[row]: why for row, why in store.failures.items()})
    say(printable(f"second validation set {tune.guard_data}: {report.sentence()}"))
    refuse_bad(tune.guard_data, report, data)
    valid = PairSet.from_pairs(report.good)
    row_of = {path: row for row, path in enumerate(store.paths)}
    rows = np.array([row_of[path] for path in valid.images])
    return ValidationSet(valid, store.subset(rows), None, tokenizer, preprocessing)
