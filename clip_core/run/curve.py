"""A measured value over the steps of a run, in bounded memory, with every spike kept."""

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LIMIT = 4096  # buckets held; above it, neighbours are merged


class Bucket(NamedTuple):
    """Some consecutive measurements: the steps that they span, the smallest and the largest value."""

    first: int
    last: int
    low: float
    high: float


class Points(Sequence[Bucket]):
    """The buckets of a curve as columns, oldest first: float64 arrays of shape (N,).

    Attributes:
        first, last: the steps that a bucket spans.
        low, high, mean: the smallest, the largest and the mean value in it.
    """

    __slots__ = ("first", "high", "last", "low", "mean")

    def __init__(
        self,
        first: "npt.NDArray[np.float64]",
        last: "npt.NDArray[np.float64]",
        low: "npt.NDArray[np.float64]",
        high: "npt.NDArray[np.float64]",
        mean: "npt.NDArray[np.float64]",
    ) -> None:
        self.first, self.last, self.low, self.high, self.mean = first, last, low, high, mean

    @classmethod
    def of(cls, buckets: Iterable[Bucket]) -> "Points":
        """Buckets as columns; the mean is the middle of each."""
        import numpy as np

        rows = np.array(list(buckets), dtype=np.float64).reshape(-1, 4)
        return cls(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3], (rows[:, 2] + rows[:, 3]) / 2)

    def __len__(self) -> int:
        return len(self.first)

    @overload
    def __getitem__(self, index: int) -> Bucket: ...
    @overload
    def __getitem__(self, index: slice) -> list[Bucket]: ...
    def __getitem__(self, index: int | slice) -> Bucket | list[Bucket]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return Bucket(int(self.first[index]), int(self.last[index]), float(self.low[index]), float(self.high[index]))

    def followed_by(self, other: "Points") -> "Points":
        """These points, then those of `other` that come after them."""
        import numpy as np

        later = other.first > (self.last[-1] if len(self) else -1)
        mine, others = self._columns(), other._columns()
        return Points(*(np.concatenate((a, b[later])) for a, b in zip(mine, others, strict=True)))

    def _columns(self) -> "tuple[npt.NDArray[np.float64], ...]":
        return self.first, self.last, self.low, self.high, self.mean


class Curve:
    """Measurements in at most LIMIT buckets of equal size: 1 measurement each at first, then 2, 4, 8, ..."""

    def __init__(self) -> None:
        self.latest: float = math.nan
        self._first, self._last, self._low, self._high, self._sum = (array("d") for _ in range(5))
        self._size = 1  # measurements in a full bucket
        self._count = 0  # measurements in the last bucket; 0 where every bucket is full
        self._points: Points | None = None  # None: to be made from the arrays

    @property
    def buckets(self) -> list[Bucket]:
        """All buckets, oldest first; the last one may not be full."""
        return [
            Bucket(int(first), int(last), low, high)
            for first, last, low, high in zip(self._first, self._last, self._low, self._high, strict=True)
        ]

    def points(self) -> Points:
        """All buckets as columns; the same object until something is added."""
        if self._points is None:
            import numpy as np  # here, because the list of runs is drawn without it

            sizes = np.full(len(self._sum), float(self._size))
            if self._count:
                sizes[-1] = self._count
            first, last, low, high, total = (
                np.array(column) for column in (self._first, self._last, self._low, self._high, self._sum)
            )
            self._points = Points(first, last, low, high, np.clip(total / sizes, low, high))
        return self._points

    def add(self, step: int, value: float) -> None:
        """Append a finite measurement."""
        self.extend((step,), (value,))

    def extend(self, steps: Sequence[int], values: Sequence[float]) -> None:
        """Append finite measurements at ascending steps; much faster than one `add` each.  (N,), (N,)"""
        at, count = 0, len(values)
        if not count:
            return
        self._points, self.latest = None, values[-1]
        if self._size == 1 and len(self._low) + count <= LIMIT - 1:
            self._first.extend(steps)
            self._last.extend(steps)
            for column in (self._low, self._high, self._sum):
                column.extend(values)
            return
        while at < count:
            end = min(count, at + self._size - self._count)
            self._take(steps[at], steps[end - 1], values[at:end])
            self._count = (self._count + end - at) % self._size
            at = end
            if self._count == 0 and len(self._low) >= LIMIT:
                self._halve()

    def _take(self, first: int, last: int, values: Sequence[float]) -> None:
        """Add measurements to the bucket that is being filled, or begin one with them."""
        low, high, total = min(values), max(values), sum(values)
        if not self._count:
            columns = (self._first, self._last, self._low, self._high, self._sum)
            for column, value in zip(columns, (first, last, low, high, total), strict=True):
                column.append(value)
            return
        self._last[-1] = last
        self._low[-1], self._high[-1] = min(self._low[-1], low), max(self._high[-1], high)
        self._sum[-1] += total

    def _halve(self) -> None:
        """Merge each pair of neighbours."""
        self._first, self._last = self._first[::2], self._last[1::2]
        self._low = array("d", map(min, self._low[::2], self._low[1::2]))
        self._high = array("d", map(max, self._high[::2], self._high[1::2]))
        self._sum = array("d", (a + b for a, b in zip(self._sum[::2], self._sum[1::2], strict=True)))
        self._size *= 2
