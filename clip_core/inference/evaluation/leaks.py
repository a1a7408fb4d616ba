"""Whether evaluated pairs were in the training set of the model's run."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from clip_core.data.pairs import Pair, pair_hashes
from clip_core.data.stream.left_out import place_of
from clip_core.files import DAMAGED_ARRAY
from clip_core.inference.evaluation.evaluation_set import EvaluationSet, run_of
from clip_core.run.paths import RunPaths
from clip_core.run.records import RunRecord, StreamRecord, ValidationPairs
from clip_core.text import printable


def leak_note(model: Path, data: EvaluationSet) -> str | None:
    """How many evaluated images the model was trained on, as one sentence; None where it is not of a run.

    A pair is recognised by the image's name below its root, the size of its file, and its caption, or by its shard
    (`trained_on`); the class of a folder counts in the run's template too. Validation pairs of the run are not
    training pairs.
    """
    run = run_of(model)
    if run is None or not data.listed:
        return None
    name = printable(str(run))
    spellings: list[Sequence[Pair]] = [data.listed]
    record = RunRecord.find(RunPaths(run).config)
    if record and data.pairs is None:  # class names
        template = record.config.data.class_template
        spellings.append([pair._replace(caption=template.replace("{}", pair.caption)) for pair in data.listed])
    trained: set[str] = set()
    for pairs in spellings:
        seen = trained_on(model, pairs)
        if seen is None:
            return f"{name} has no pairs.npy: whether it was trained on these pairs cannot be checked"
        trained |= {pair.path for pair, was in zip(pairs, seen.tolist(), strict=True) if was}
    if not trained:
        return f"none of these pairs was in the training set of {name}"
    return f"WARNING: {len(trained):,} of {len(data.images):,} images were in the training set of {name}"


def trained_on(model: Path, pairs: Sequence[Pair]) -> NDArray[np.bool_] | None:
    """Which pairs the model's run was trained on, (P,); None where it is of no run, or that has no pairs.npy.

    Of a run on a stream these are all pairs of its shards but the first, which are its validation set.
    """
    run = run_of(model)
    if run is None:
        return None
    if (stream := StreamRecord.find(RunPaths(run).stream)) is not None:
        return _streamed(stream, pairs)
    try:
        known = np.load(RunPaths(run).pair_hashes, allow_pickle=False)
    except DAMAGED_ARRAY:
        return None
    validation = _validation(run)
    in_validation = np.array([(pair.path, pair.caption) in validation for pair in pairs], dtype=np.bool_)
    return np.isin(pair_hashes(pairs), known) & ~in_validation


def trained_note(model: Path, trained: NDArray[np.bool_] | None) -> str | None:
    """What the answer of `trained_on` means for scores of these pairs, as one sentence; None where it means nothing."""
    run = run_of(model)
    if run is None or (trained is not None and not trained.any()):
        return None
    name = printable(str(run))
    if trained is None:
        return f"{name} has no pairs.npy: pairs that it was trained on cannot be scored apart from the others"
    return (
        f"{name} was trained on {trained.sum():,} of these {len(trained):,} pairs: those that it memorised look right, "
        "and a model of other pairs finds more"
    )


def _streamed(stream: StreamRecord, pairs: Sequence[Pair]) -> NDArray[np.bool_]:
    """Which pairs are in these shards, whose names are recognised, behind where the training pairs begin.  (P,)"""
    numbers = {PurePosixPath(name).name: number for number, name in enumerate(stream.shards)}

    def among(pair: Pair) -> bool:
        place = place_of(pair.path)
        number = numbers.get(PurePosixPath(place[0]).name) if place else None
        return place is not None and number is not None and (number, place[1]) >= (stream.first, stream.offset)

    return np.fromiter((among(pair) for pair in pairs), np.bool_, len(pairs))


def _validation(run: Path) -> set[tuple[str, str]]:
    """Image and caption of the run's validation pairs."""
    held = ValidationPairs.find(RunPaths(run).validation)
    return {(pair.image, pair.caption) for pair in held.pairs} if held else set()
