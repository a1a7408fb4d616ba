"""What happened in a run so far, from its metrics, in bounded memory: curves, last values, events, pace."""

import math
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clip_core.run.curve import Bucket, Curve
from clip_core.run.metrics import NOT_METRICS
from clip_core.run.reader import BLOCK, RunReader, objects

EVENTS_KEPT = 200
_PACE_LINES = 20
_OUTLINE_FROM = 4 * BLOCK  # unread bytes from which an outline is sampled first
_OUTLINE_POINTS = 1500
_OUTLINE_LINE = 4096  # bytes read for a line of the outline


@dataclass(frozen=True)
class Event:
    """A line of kind event. `request` is the id of the request that it acknowledges."""

    step: int
    time: float
    message: str
    request: str | None = None
    outcome: str | None = None
    health: bool = False


@dataclass
class History:
    """Follows metrics.jsonl; `refresh` reads only what is new, for at most so long.

    A file of many lines is sampled first, so that there are curves at once; the samples make way for what is read.
    """

    reader: RunReader
    last: dict[str, dict[str, Any]] = field(default_factory=dict)  # kind -> its last line
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    complete: bool = False  # everything that was there at the last refresh has been read
    _curves: dict[str, Curve] = field(default_factory=dict)
    _outline: dict[str, list[Bucket]] = field(default_factory=dict)
    _pace: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_PACE_LINES))
    _sampled: bool = False

    def refresh(self, seconds: float = math.inf) -> None:
        """Read what is new, for at most about `seconds`."""
        began = time.monotonic()
        if not self._sampled:
            self._sampled = True
            self._sample()
        while True:
            rows, restarted, more = self.reader.new_lines()
            if restarted:
                self._forget()
            for row in rows:
                self._take(row)
            self.complete = not more
            if self.complete:
                self._outline.clear()
            if not more or time.monotonic() - began > seconds:
                return

    def curves(self) -> Mapping[str, Sequence[Bucket]]:
        """The points of each metric that was ever a number, by key, oldest first."""
        found: dict[str, Sequence[Bucket]] = {key: tuple(curve.buckets) for key, curve in self._curves.items()}
        for key, points in self._outline.items():
            read = found.get(key, ())
            after = read[-1].last if read else -1
            found[key] = (*read, *(point for point in points if point.first > after))
        return found

    def steps_per_second(self) -> float | None:
        """The pace of late, without the time in which the run stood still; None where it is not known."""
        if len(self._pace) < 2:
            return None
        (began, first), (ended, last) = self._pace[0], self._pace[-1]
        return (last - first) / (ended - began) if ended > began and last > first else None

    # ------------------------------------------------------------ lines

    def _take(self, row: dict[str, Any]) -> None:
        step, kind = row.get("step"), str(row.get("kind"))
        if not isinstance(step, int):
            return
        at = float(row["time"]) if _is_number(row.get("time")) else 0.0
        if kind == "event":
            self._take_event(row, step, at)
            return
        self.last[kind] = row
        if kind == "train" and at:
            self._pace.append((at, step))
        for key, value in row.items():
            if key not in NOT_METRICS and _is_number(value):
                self._curves.setdefault(key, Curve()).add(step, float(value))

    def _take_event(self, row: dict[str, Any], step: int, at: float) -> None:
        request, outcome = row.get("request"), row.get("outcome")
        self.events.append(
            Event(
                step,
                at,
                str(row.get("message", "")),
                request if isinstance(request, str) else None,
                outcome if isinstance(outcome, str) else None,
                row.get("health") is True,
            )
        )
        if row.get("pace") == "restart":  # the run stood still: resumed, or paused
            self._pace.clear()

    def _forget(self) -> None:
        self.last.clear()
        self.events.clear()
        self._curves.clear()
        self._outline.clear()
        self._pace.clear()

    # ------------------------------------------------------------ the outline

    def _sample(self) -> None:
        """Lines at even distances over a long file, as single points."""
        try:
            with self.reader.paths.metrics.open("rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                if size < _OUTLINE_FROM:
                    return
                for number in range(_OUTLINE_POINTS):
                    handle.seek(size * number // _OUTLINE_POINTS)
                    handle.readline(_OUTLINE_LINE)  # the rest of a line
                    for row in objects(handle.readline(_OUTLINE_LINE)):
                        self._outline_point(row)
        except OSError:
            return

    def _outline_point(self, row: dict[str, Any]) -> None:
        step = row.get("step")
        if row.get("kind") == "event" or not isinstance(step, int):
            return
        for key, value in row.items():
            if key not in NOT_METRICS and _is_number(value):
                points = self._outline.setdefault(key, [])
                if not points or points[-1].last < step:
                    points.append(Bucket(step, step, float(value), float(value)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
