"""A measured value over the steps of a run, in bounded memory, with every spike kept."""

import math
from typing import NamedTuple

LIMIT = 2048  # buckets held; past it, neighbours are joined


class Bucket(NamedTuple):
    """Some consecutive measurements: the steps they span, the least and the largest value."""

    first: int
    last: int
    low: float
    high: float


class Curve:
    """Appended to as lines arrive. A bucket holds one measurement until there are too many, then 2, 4, 8, ..."""

    def __init__(self) -> None:
        self.buckets: list[Bucket] = []
        self.latest: float = math.nan
        self._per_bucket = 1
        self._in_last = 0

    def add(self, step: int, value: float) -> None:
        """Append a finite measurement."""
        self.latest = value
        if self.buckets and self._in_last < self._per_bucket:
            self.buckets[-1] = _join(self.buckets[-1], Bucket(step, step, value, value))
            self._in_last += 1
            return
        self.buckets.append(Bucket(step, step, value, value))
        self._in_last = 1
        if len(self.buckets) > LIMIT:
            self._halve()

    def _halve(self) -> None:
        even = self.buckets[: len(self.buckets) // 2 * 2]
        odd = self.buckets[len(even) :]
        self.buckets = [_join(a, b) for a, b in zip(even[::2], even[1::2], strict=True)] + odd
        self._per_bucket *= 2


def _join(a: Bucket, b: Bucket) -> Bucket:
    return Bucket(min(a.first, b.first), max(a.last, b.last), min(a.low, b.low), max(a.high, b.high))
