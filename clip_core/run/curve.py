"""A measured value over the steps of a run, in bounded memory, with every spike kept."""

import math
from collections.abc import Sequence
from typing import NamedTuple

LIMIT = 2048  # buckets held; above it, neighbours are merged


class Bucket(NamedTuple):
    """Some consecutive measurements: the steps that they span, the smallest and the largest value."""

    first: int
    last: int
    low: float
    high: float


class Curve:
    """Measurements in at most LIMIT buckets of equal size: 1 measurement each at first, then 2, 4, 8, ..."""

    def __init__(self) -> None:
        self.latest: float = math.nan
        self._full: list[Bucket] = []
        self._size = 1  # measurements in a full bucket
        self._partial: Bucket | None = None  # the bucket that is being filled
        self._count = 0  # measurements in it

    @property
    def buckets(self) -> list[Bucket]:
        """All buckets, oldest first."""
        return [*self._full, self._partial] if self._partial else list(self._full)

    def add(self, step: int, value: float) -> None:
        """Append a finite measurement."""
        self.extend((step,), (value,))

    def extend(self, steps: Sequence[int], values: Sequence[float]) -> None:
        """Append finite measurements at ascending steps; much faster than one `add` each.  (N,), (N,)"""
        at, count = 0, len(values)
        while at < count:
            end = min(count, at + self._size - self._count)
            part = Bucket(steps[at], steps[end - 1], min(values[at:end]), max(values[at:end]))
            self._partial = _merged(self._partial, part) if self._partial else part
            self._count += end - at
            at = end
            if self._count == self._size:
                self._full.append(self._partial)
                self._partial, self._count = None, 0
                if len(self._full) >= LIMIT:
                    self._halve()
        if count:
            self.latest = values[-1]

    def _halve(self) -> None:
        """Merge each pair of neighbours."""
        self._full = [_merged(a, b) for a, b in zip(self._full[::2], self._full[1::2], strict=True)]
        self._size *= 2


def _merged(a: Bucket, b: Bucket) -> Bucket:
    return Bucket(a.first, b.last, min(a.low, b.low), max(a.high, b.high))
