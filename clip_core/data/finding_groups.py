"""Every group of pairs that a finding of `clip-data check` has, one at a time; a report has only examples.

Shapes: P pairs, I distinct images.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clip_core.data.check import Check, Group
from clip_core.text import plural

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_MOST = 1000  # images or pairs of a group that are listed


def image_groups(check: Check, labels: IntArray, chosen: BoolArray, first: BoolArray | None = None) -> Iterator[Group]:
    """All pairs of each group of alike images that has a chosen one.

    Args:
        labels: equal for images of one group, (I,).
        chosen: (I,).
        first: images whose pairs stay, (I,); None: the first of each group.
    """
    pairs, starts = _pairs_by_image(check)
    readable = check.images.facts["readable"]
    images = np.flatnonzero(np.isin(labels, labels[chosen]) & readable)
    images = images[np.argsort(labels[images], kind="stable")]
    for start, end in pairwise(_starts(labels[images])):
        members = images[start:end]
        stay = np.arange(len(members)) == 0 if first is None else first[members]
        ordered = np.concatenate([members[stay], members[~stay]])[:_MOST]
        parts = [pairs[starts[image] : starts[image + 1]] for image in ordered]
        keep = sum(map(len, parts[: int(stay.sum())]))
        yield Group(np.concatenate(parts), keep, plural(len(members), "image"))


def single_images(check: Check, rows: IntArray, note: Callable[[int], str]) -> Iterator[Group]:
    """All pairs of each of these images."""
    pairs, starts = _pairs_by_image(check)
    for row in rows.tolist():
        yield Group(pairs[starts[row] : starts[row + 1]], 0, note(row))


def single(rows: IntArray, note: Callable[[int], str] = lambda place: "") -> Iterator[Group]:
    """A group for each pair; `note` takes its place in `rows`."""
    for place in range(len(rows)):
        yield Group(rows[place : place + 1], 0, note(place))


def repetitions(rows: IntArray, keys: IntArray) -> Iterator[Group]:
    """The pairs of each key that repeats, the most frequent first, then in the list's order; the first pair stays.

    Args:
        rows, keys: of pairs, in the order of the keys.
    """
    starts = _starts(keys)
    counts = np.diff(starts)
    for run in np.lexsort((rows[starts[:-1]], -counts)):
        if counts[run] < 2:
            return
        yield Group(rows[starts[run] : starts[run + 1]][:_MOST], 1, f"{counts[run]:,} times")


def classes(rows: IntArray, keys: IntArray, least: int) -> Iterator[Group]:
    """The pairs of each key that is `least` times rarer than the most frequent; all of them stay.

    Args:
        rows, keys: of pairs, in the order of the keys.
    """
    starts = _starts(keys)
    counts = np.diff(starts)
    for run in np.lexsort((rows[starts[:-1]], counts)):
        if least * counts[run] >= counts.max():
            return
        members = rows[starts[run] : starts[run + 1]][:_MOST]
        yield Group(members, len(members), plural(int(counts[run]), "pair"))


def _pairs_by_image(check: Check) -> tuple[IntArray, IntArray]:
    """Usable pairs in the order of their images, and where those of each image begin, (I + 1,)."""
    rows = np.flatnonzero(check.usable)
    images = check.image_of[rows]
    order = np.argsort(images, kind="stable")
    return rows[order], np.searchsorted(images[order], np.arange(len(check.firsts) + 1))


def _starts(keys: IntArray) -> IntArray:
    """Where each run of equal keys begins, and the end of the last."""
    if not len(keys):
        return np.zeros(1, dtype=np.int64)
    return np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)]])
