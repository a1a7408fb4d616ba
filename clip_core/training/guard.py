"""A second set of pairs, judged beside the user's own, so that what tuning makes a model forget is seen."""

from collections.abc import Callable

import numpy as np

from clip_core.config import DataConfig, TuneConfig
from clip_core.data.dataset import PairSet, refuse_bad
from clip_core.data.formats.recognise import read_data
from clip_core.data.formats.source import Wishes
from clip_core.data.pairs import Pair, distinct_images, sort_pairs
from clip_core.data.store import ImageStore
from clip_core.data.tokenizer import Tokenizer
from clip_core.network import Preprocessing
from clip_core.text import printable
from clip_core.training.evaluate import ValidationSet

PREFIX = "guard_"


def read_guard(tune: TuneConfig) -> list[Pair]:
    """The guard's pairs, in any format that is recognised, nothing decoded.

    Raises:
        DataError: if it is missing or no such list.
    """
    return read_data(tune.guard_data, Wishes(tune.guard_root)).pairs if tune.guard_data else []


def load_guard(
    tune: TuneConfig,
    data: DataConfig,
    preprocessing: Preprocessing,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
) -> ValidationSet | None:
    """The guard's pairs and images, checked as the user's own are; None where there is no guard.

    Raises:
        DataError: if the list cannot be read, or too many of its pairs are bad.
    """
    if tune.guard_data is None:
        return None
    pairs = read_guard(tune)
    store = ImageStore.build(distinct_images(pairs), preprocessing, cache_gb=data.cache_gb, workers=data.workers)
    report = sort_pairs(pairs, {store.paths[row]: why for row, why in store.failures.items()})
    say(printable(f"guard {tune.guard_data}: {report.sentence()}"))
    refuse_bad(tune.guard_data, report, data)
    guard = PairSet.from_pairs(report.good)
    row_of = {path: row for row, path in enumerate(store.paths)}
    rows = np.array([row_of[path] for path in guard.images])
    return ValidationSet(guard, store.subset(rows), None, tokenizer, preprocessing)


def guard_scores(scores: dict[str, float]) -> dict[str, float]:
    """An evaluation's recall under names of its own: `guard_image_to_text_recall@1`, ..., `guard_mean_recall`."""
    return {PREFIX + name: value for name, value in scores.items() if "recall" in name}
