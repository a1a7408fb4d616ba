"""The second validation set: pairs unlike the training data, evaluated beside the first set to detect forgetting.

Validation pairs out of the training data do not show it: fine-tuning raises their scores while everything else that
the weights knew is lost.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_core.config import DataConfig, TuneConfig
from clip_core.data.dataset import PairSet, refuse_bad
from clip_core.data.describe import two_lines
from clip_core.data.formats.detect import read_data
from clip_core.data.formats.source import ReadOptions
from clip_core.data.pairs import Pair, distinct_images, sort_pairs
from clip_core.data.splits import split_validation
from clip_core.data.store import ImageStore
from clip_core.data.synthetic import COMBINATIONS, create_synthetic
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import DataError
from clip_core.files import cache_folder, scratch_folder
from clip_core.network import Preprocessing
from clip_core.text import printable
from clip_core.training.evaluate import ValidationSet

BUILTIN, NONE = "builtin", "none"  # of --guard-data
_EACH = 4  # drawn images of each colour and shape
_SIDE = 128  # pixels


class Guard(NamedTuple):
    """What --guard-data asks for: the drawn shapes, and a list or folder of the user's."""

    builtin: bool
    data: Path | None

    def __str__(self) -> str:
        """As typed, and as absolute paths are stored: `builtin,/data/classes`."""
        parts = [BUILTIN] if self.builtin else []
        return ",".join(parts + ([str(self.data)] if self.data else [])) or NONE


def guard_of(tune: TuneConfig) -> Guard:
    """The second validation set of a run: by default the drawn shapes for pretrained weights, else none."""
    if tune.guard_data is None:
        return Guard(tune.init is not None, None)
    named = str(tune.guard_data)
    head, _, rest = named.partition(",")
    if head == BUILTIN:
        return Guard(True, Path(rest) if rest else None)
    return Guard(False, None if named == NONE else tune.guard_data)


def read_second_validation(tune: TuneConfig) -> Sequence[Pair]:
    """Its pairs, in any format that is recognised; images are not decoded, and the drawn shapes are drawn once.

    Raises:
        DataError: if it is missing or no list of pairs.
    """
    return _read(tune)[0]


def _read(tune: TuneConfig) -> tuple[Sequence[Pair], list[str]]:
    """The pairs for validation, and what is said of how they were read."""
    guard = guard_of(tune)
    drawn = read_data(drawn_shapes(), ReadOptions()).pairs if guard.builtin else []
    if guard.data is None:
        return drawn, []
    reading = read_data(guard.data, ReadOptions(tune.guard_root))
    split = split_validation(reading.pairs, reading.columns)
    said = [f"{guard.data}: {split.said}."] if split.said is not None else []
    return [*drawn, *(split.val or [])], [*two_lines(reading), *map(printable, said)]


def drawn_shapes() -> Path:
    """The list of the drawn shapes in the cache folder, drawn there once for all runs.

    Raises:
        DataError: if the cache folder cannot be written to.
    """
    folder = cache_folder() / "second-validation" / f"shapes-{_EACH}-{_SIDE}"
    listed = folder / "shapes.json"
    if listed.is_file():
        return listed
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder("shapes", folder.parent) as fresh:
            create_synthetic(fresh / listed.name, count=_EACH * len(COMBINATIONS), seed=0, size=_SIDE)
            with suppress(OSError):  # another process was faster
                os.rename(fresh, folder)  # noqa: PTH104
    except OSError as error:
        raise DataError(
            f"cannot draw the second validation set in {folder.parent} ({error.strerror}); set XDG_CACHE_HOME, or add "
            f"--guard-data {NONE}."
        ) from None
    return listed


def load_second_validation(
    tune: TuneConfig,
    data: DataConfig,
    preprocessing: Preprocessing,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
) -> ValidationSet | None:
    """Its pairs and images, checked as the training data are; None where there is none.

    Raises:
        DataError: if the list cannot be read, or too many of its pairs are invalid.
    """
    guard = guard_of(tune)
    if not guard.builtin and guard.data is None:
        if tune.init is not None:
            say(
                f"forgetting is not measured: add --guard-data {BUILTIN} (drawn shapes), or FILE with pairs unlike the "
                "training data"
            )
        return None
    pairs, said = _read(tune)
    for line in said:
        say(line)
    store = ImageStore.build(distinct_images(pairs), preprocessing, cache_gb=data.cache_gb, workers=data.workers)
    report = sort_pairs(pairs, {store.paths[row]: why for row, why in store.failures.items()})
    more = ""
    if tune.guard_data is None:
        more = f" It shows forgetting; --guard-data {BUILTIN},FOLDER adds your classes, {NONE} leaves it out."
    say(printable(f"second validation set {guard}: {report.sentence()}{more}"))
    refuse_bad(Path(str(guard)), report, data)
    valid = PairSet.from_pairs(report.good)
    row_of = {path: row for row, path in enumerate(store.paths)}
    rows = np.array([row_of[path] for path in valid.images])
    return ValidationSet(valid, store.subset(rows), None, tokenizer, preprocessing)


def chance(pairs: PairSet) -> float:
    """The recall@1, mean of both ways, of random embeddings."""
    return len(pairs) / max(len(pairs.images) * len(pairs.captions), 1)
