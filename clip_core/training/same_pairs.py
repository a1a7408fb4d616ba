"""Whether the pairs of a resumed run are those that it began with, wherever they are stored now.

Shapes: P pairs, training pairs first, in the order of their lists.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_core.data.dataset import Data
from clip_core.data.pairs import Hashes, Pair, pair_hashes
from clip_core.errors import RunError
from clip_core.files import DAMAGED_ARRAY, read_regular, replacing
from clip_core.run.paths import RunPaths
from clip_core.text import printable

_NAMED = 60  # characters of a caption in a message


def store_hashes(run: Path, hashes: Hashes) -> None:
    with replacing(RunPaths(run).pair_hashes) as beside, beside.open("wb") as handle:
        np.save(handle, hashes)


def refuse_other_pairs(run: Path, expected: str, file: Path, data: Data) -> None:
    """Raise RunError, saying what differs, unless these are the pairs that the run began with, in the same order.

    Args:
        expected: `fingerprint` of the run, which decides where the run has no hashes.
        file: the list of the pairs now.
    """
    pairs, now = data.report.good, pair_hashes(data.report.good)
    try:
        content = io.BytesIO(read_regular(RunPaths(run).pair_hashes))
        before = np.lib.format.read_array(content, allow_pickle=False)
    except DAMAGED_ARRAY:
        before = None
    same = data.fingerprint == expected if before is None else np.array_equal(before, now)
    if not same:
        raise RunError(
            f"the pairs of {file} are not those that {run} was trained on: {_difference(before, now, pairs)}; "
            "give the same pairs with --data and --image-root, or start a new run."
        )


def _difference(before: Hashes | None, now: Hashes, pairs: Sequence[Pair]) -> str:
    if before is None:
        return f"there are {len(now):,} usable pairs, and their images or captions differ"
    missing, added = np.flatnonzero(~np.isin(before, now)), np.flatnonzero(~np.isin(now, before))
    parts = []
    if len(missing):
        parts.append(f"{len(missing):,} {_are(missing)} missing (first: usable pair {missing[0] + 1})")
    if len(added):
        first = pairs[int(added[0])]
        what = printable(f'{first.name or first.image.name} "{first.caption}"', _NAMED)
        parts.append(f"{len(added):,} {_are(added)} new or changed (first: {what})")
    return " and ".join(parts) or "their order or number differs"


def _are(rows: NDArray[np.int64]) -> str:
    return "is" if len(rows) == 1 else "are"
