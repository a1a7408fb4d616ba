"""What is evaluated: labelled images, image-text pairs, or both, from any data set of the product.

Shapes: N images, P pairs, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_core.data.dataset import PairSet, few_classes
from clip_core.data.formats.clip_benchmark import Benchmark, benchmark_splits, read_benchmark
from clip_core.data.formats.detect import Reading
from clip_core.data.pairs import Pair
from clip_core.data.splits import split_counts
from clip_core.errors import DataError, UsageError
from clip_core.run.paths import RunPaths, is_run
from clip_core.run.records import ValidationPairs
from clip_core.scoring import IntArray
from clip_core.text import normalise_caption, plural, printable

_TESTED = ("test", "val")  # the split that is evaluated, the first that is there


@dataclass(frozen=True)
class EvaluationSet:
    """Images with classes, with captions, or with both.

    `target_rows`, `target_classes`: an image and one of its classes in each place, (T,); multi-label images have
    several. `pairs.images` are `images`. `train`: labelled images of the set's own train split, for probes of frozen
    features.
    """

    name: str
    images: list[Path]
    notes: list[str]  # what was assumed or left out, a sentence each
    class_names: list[str] | None = None
    target_rows: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    target_classes: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    templates: list[str] | None = None  # the set's own
    pairs: PairSet | None = None
    listed: Sequence[Pair] = ()  # as they were read: for the comparison with training pairs
    train: "EvaluationSet | None" = None

    @property
    def labels(self) -> IntArray | None:
        """The class of each image, (N,), where each has exactly one."""
        single = np.array_equal(self.target_rows, np.arange(len(self.images)))
        return self.target_classes if self.class_names and single else None

    def subset(self, kept: NDArray[np.bool_]) -> "EvaluationSet":
        """Some of the images, (N,), in their order, with what belongs to them."""
        rows, row_of = np.flatnonzero(kept), np.cumsum(kept) - 1
        targets = kept[self.target_rows]
        return replace(
            self,
            images=[self.images[row] for row in rows],
            target_rows=row_of[self.target_rows[targets]],
            target_classes=self.target_classes[targets],
            pairs=self.pairs.subset(kept) if self.pairs else None,
        )


def from_reading(reading: Reading, split: str | None, say: Callable[[str], None]) -> EvaluationSet:
    """The pairs of a list or a folder: of the split that is asked for, else test, else val, else all of them.

    Class folders, read with the class names for captions, are labelled images. Pairs are that too if their captions
    look like classes (see `few_classes`).

    Raises:
        DataError: if there is no such split, or no usable pair.
    """
    counts = split_counts(reading.pairs)
    name = printable(str(reading.path))
    if split is not None and split not in counts:
        there = ", ".join(counts) or "none"
        raise DataError(f"{name} has no {split} pairs; its splits: {there}.")
    use = split or next((each for each in _TESTED if each in counts), None)
    chosen = [pair for pair in reading.pairs if use is None or pair.split == use]
    if use and len(counts) > 1:
        others = ", ".join(f"{count:,} {each}" for each, count in counts.items() if each != use)
        say(f"{name}: {plural(counts[use], f'{use} pair')} evaluated; {others} not.")
    found = _of_pairs(name, chosen, folders=reading.format == "class-folders")
    found.notes.extend(note for note in reading.notes)
    training = [pair for pair in reading.pairs if pair.split == "train"] if use in _TESTED else []
    if training and found.class_names:
        found = replace(found, train=_labelled(name, training, found.class_names))
    return found


def run_of(model: Path) -> Path | None:
    """The run that a model belongs to: itself, or that of a checkpoint or a bundle."""
    model = model.absolute()
    return next((each for each in (model, model.parent, model.parent.parent) if is_run(each)), None)


def of_run(model: Path) -> EvaluationSet:
    """The validation pairs of a run, or of the run of a checkpoint or a bundle.

    Raises:
        UsageError: if the model is of no run.
        RunError: if the run has no validation pairs.
    """
    run = run_of(model)
    if run is None:
        raise UsageError(f"{printable(str(model))} is no run, so it has no validation pairs; name a set with --data.")
    held = ValidationPairs.read(RunPaths(run).validation).pairs
    pairs = [Pair(pair.image, pair.caption, entry) for entry, pair in enumerate(held, start=1)]
    return _of_pairs(f"validation pairs of {printable(str(run))}", pairs, folders=False)


def _of_pairs(name: str, chosen: Sequence[Pair], *, folders: bool) -> EvaluationSet:
    good = [pair for pair in chosen if pair.problem is None]
    bad = [pair for pair in chosen if pair.problem is not None]
    notes = (
        [f"{len(bad):,} of {len(chosen):,} pairs are unusable, first {bad[0].place}: {bad[0].problem}"] if bad else []
    )
    if not good:
        raise DataError(f"{name} has no usable pair: {notes[0] if notes else 'it is empty'}.")
    pairs = PairSet.from_pairs(good)
    if folders:
        names = sorted(pairs.captions)
        return replace(_labelled(name, good, names), notes=notes, listed=good)
    nothing = pairs.subset(np.zeros(len(pairs.images), np.bool_))
    names_or_none = few_classes(pairs, nothing)
    if names_or_none is None:
        return EvaluationSet(name, pairs.images, notes, pairs=pairs, listed=good)
    notes.append(f"the {len(names_or_none):,} distinct captions are taken for classes, each for its own prompt")
    labelled = _labelled(name, good, names_or_none)
    return replace(labelled, notes=notes, pairs=pairs, templates=["{}"], listed=good)


def _labelled(name: str, pairs: Sequence[Pair], names: list[str]) -> EvaluationSet:
    """Images with their captions for classes; an image of another class than these is left out."""
    numbers = {normalise_caption(each): number for number, each in enumerate(names)}
    label_of = {
        pair.path: numbers[normalise_caption(pair.caption)]
        for pair in pairs
        if pair.problem is None and normalise_caption(pair.caption) in numbers
    }
    return EvaluationSet(
        name,
        list(map(Path, label_of)),
        [],
        names,
        np.arange(len(label_of)),
        np.array(list(label_of.values()), dtype=np.int64),
    )


# ---------------------------------------------------------------- CLIP_benchmark


def from_benchmark(folder: Path, split: str | None, say: Callable[[str], None]) -> EvaluationSet:
    """A data set in CLIP_benchmark's layout; see `read_benchmark`.

    Raises:
        DataError: if it cannot be read, or has no usable sample.
    """
    read = read_benchmark(folder, split)
    found = _of_benchmark(folder, read)
    others = [each for each in read.splits if each != read.split]
    if others:
        say(f"{printable(str(folder))}: {read.split} evaluated; {', '.join(others)} not.")
    if "train" in others and read.kind == "classification":
        found = replace(found, train=_of_benchmark(folder, read_benchmark(folder, "train")))
    return found


def is_benchmark(folder: Path) -> bool:
    return folder.is_dir() and bool(benchmark_splits(folder))


def _of_benchmark(folder: Path, read: Benchmark) -> EvaluationSet:
    name = printable(f"{folder}/{read.split}")
    good = [sample for sample in read.samples if sample.problem is None]
    bad = [sample for sample in read.samples if sample.problem is not None]
    notes = []
    if bad:
        notes = [f"{len(bad):,} of {len(read.samples):,} samples are unusable, first {bad[0].name}: {bad[0].problem}"]
    if not good:
        raise DataError(f"{name} has no usable sample{f': {notes[0]}' if bad else ''}.")
    if read.kind == "retrieval":
        pairs = [
            Pair(sample.image, text, n, sample.name) for n, sample in enumerate(good, 1) for text in sample.captions
        ]
        held = PairSet.from_pairs(pairs)
        return EvaluationSet(name, held.images, notes, pairs=held, listed=pairs)
    rows = [row for row, sample in enumerate(good) for _ in sample.classes]
    numbers = [number for sample in good for number in sample.classes]
    return EvaluationSet(
        name,
        [Path(sample.image) for sample in good],
        notes,
        read.class_names,
        np.array(rows, dtype=np.int64),
        np.array(numbers, dtype=np.int64),
        read.templates or None,
    )
