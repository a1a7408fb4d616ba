"""The splits that a data set states itself, as a column, a key or folders: which pairs are for what."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from clip_core.data.pairs import Pair

SPLITS = ("train", "val", "test")


class Split(NamedTuple):
    """Pairs of one list, by use.

    `val` is None where the list has no validation pairs of its own; `said` is one sentence without its full stop,
    None where the list states no splits.
    """

    train: list[Pair]
    val: list[Pair] | None
    said: str | None


def split_counts(pairs: Sequence[Pair]) -> dict[str, int]:
    """Pairs of each stated split; empty where no pair states one. Pairs without one are under "none"."""
    counts = Counter(pair.split for pair in pairs)
    if counts.keys() <= {None}:
        return {}
    named = {name: counts[name] for name in SPLITS if counts[name]}
    return named | ({"none": counts[None]} if counts[None] else {})


def split_training(pairs: Sequence[Pair], columns: Mapping[str, str], *, val_file: bool) -> Split:
    """Pairs to train on, and those for validation: val, or test where there is no val.

    Args:
        columns: of the list; "split" names where the splits are stated.
        val_file: whether another list is the validation set, so that val and test pairs of this one are not used.
    """
    counts, place = split_counts(pairs), _place(columns)
    if not counts:
        return Split(list(pairs), None, None)
    if "train" not in counts:
        return Split(list(pairs), None, f"{place} ignored, it has no train pairs: {_listed(counts)}")
    train = [pair for pair in pairs if pair.split in ("train", None)]
    use = None if val_file else next((name for name in ("val", "test") if name in counts), None)
    parts = [f"{counts['train']:,} train"]
    if "none" in counts:
        parts.append(f"{counts['none']:,} without a split for training")
    for name in SPLITS[1:]:
        if name in counts:
            parts.append(f"{counts[name]:,} {name} {'for validation' if name == use else 'not used'}")
    said = f"{place}: {', '.join(parts)}"
    if val_file:
        return Split(train, None, f"{said}; --val-file is the validation set")
    if use is None:
        return Split(train, None, f"{said}; no val or test, so the validation set is split from the images")
    return Split(train, [pair for pair in pairs if pair.split == use], said)


def split_validation(pairs: Sequence[Pair], columns: Mapping[str, str]) -> Split:
    """The pairs of --val-file: its val, or test, where it also has pairs for training; else all of them."""
    counts, place = split_counts(pairs), _place(columns)
    use = next((name for name in ("val", "test") if name in counts), None)
    if not counts or len(counts) == 1:
        only = next(iter(counts), None)
        said = f"{place} ignored, all pairs are for validation: {_listed(counts)}" if only == "train" else None
        return Split([], list(pairs), said)
    if use is None:
        return Split([], list(pairs), f"{place} ignored, all pairs are for validation: {_listed(counts)}")
    others = ", ".join(f"{count:,} {_name(name)} not used" for name, count in counts.items() if name != use)
    said = f"{place}: {counts[use]:,} {use} for validation, {others}"
    return Split([], [pair for pair in pairs if pair.split == use], said)


def _place(columns: Mapping[str, str]) -> str:
    return "split column" if "split" in columns else "splits"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {_name(name)}" for name, count in counts.items())


def _name(split: str) -> str:
    return "without a split" if split == "none" else split
