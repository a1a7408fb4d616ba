"""The metrics of a run so far, in bounded memory: curves, last values, events, pace."""

import itertools
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard, get_args

from clip_core.files import open_regular
from clip_core.run.curve import Bucket, Curve, Points
from clip_core.run.metrics import NOT_METRICS, Kind
from clip_core.run.reader import BLOCK, RunReader, objects

EVENTS_KEPT = 200
CURVES_KEPT = 300  # a run measures about 30 values; the limit is for damaged files
_KINDS: tuple[str, ...] = get_args(Kind)
_LARGEST_STEP = 2**53  # exact as a float
_PACE_LINES = 20
_OUTLINE_FROM = 16 * BLOCK  # bytes of metrics.jsonl from which it is sampled before it is read
_OUTLINE_POINTS = 1500
_OUTLINE_LINE = 4096  # bytes of a line that is sampled


@dataclass(frozen=True)
class Event:
    """A line of kind event. `request` is the id of the request that it acknowledges."""

    step: int
    time: float  # seconds since 1970
    message: str
    request: str | None = None
    outcome: str | None = None
    health: bool = False  # a warning about the run, from training/health.py


@dataclass
class History:
    """Follows metrics.jsonl; `refresh` reads only what is new.

    A large file is sampled first, so that there are curves at once; samples are replaced by what is read.
    """

    reader: RunReader
    last: dict[str, dict[str, Any]] = field(default_factory=dict)  # kind -> its last line
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    complete: bool = False  # everything in the file at the last refresh has been read
    _curves: dict[str, Curve] = field(default_factory=dict)
    _outline: dict[str, list[Bucket]] = field(default_factory=dict)
    _times: Curve = field(default_factory=Curve)
    _outline_times: list[Bucket] = field(default_factory=list)
    _pace: deque[tuple[Any, int]] = field(default_factory=lambda: deque(maxlen=_PACE_LINES))
    _sampled: bool = False

    def refresh(self, seconds: float = math.inf) -> None:
        """Read what is new, for about `seconds` at most."""
        began = time.monotonic()
        if not self._sampled:
            self._sampled = True
            self._sample()
        while True:
            rows, restarted, more = self.reader.new_lines()
            if restarted:
                self._forget()
            self._take(rows)
            self.complete = not more
            if self.complete:
                self._forget_outline()
            if not more or time.monotonic() - began > seconds:
                return

    def curves(self) -> Mapping[str, Points]:
        """The points of each key that was ever a number; those of a key are the same object until it is measured."""
        found = {key: curve.points() for key, curve in self._curves.items()}
        for key, outline in self._outline.items():
            sampled = Points.of(outline)
            found[key] = found[key].followed_by(sampled) if key in found else sampled
        return found

    def times(self) -> Points:
        """The time of the train lines by step, in seconds since 1970."""
        if not self._outline_times:
            return self._times.points()
        return self._times.points().followed_by(Points.of(self._outline_times))

    def steps_per_second(self) -> float | None:
        """The pace over the last train lines, without pauses and stops; None where it is not known yet."""
        marks = [(at, step) for at, step in self._pace if _is_number(at)]
        if len(marks) < 2:
            return None
        (began, first), (ended, last) = marks[0], marks[-1]
        return (last - first) / (ended - began) if ended > began and last > first else None

    # ------------------------------------------------------------ lines

    def _take(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add lines to the curves, the last values, the events and the pace; lines out of order are skipped."""
        of_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS}
        newest = {kind: line["step"] for kind, line in self.last.items()}
        for row in rows:
            step, kind = row.get("step"), row.get("kind")
            if type(step) is not int or not 0 <= step < _LARGEST_STEP:
                continue
            if kind in _KINDS and step >= newest.get(kind, 0):
                newest[kind] = step
                of_kind[kind].append(row)
                if kind == "train":
                    self._pace.append((row.get("time"), step))
            elif kind == "event":
                self._take_event(row, step)
        for kind, lines in of_kind.items():
            if lines:
                self.last[kind] = lines[-1]
            for keys, same in itertools.groupby(lines, key=tuple):
                self._take_columns(dict(zip(keys, zip(*map(dict.values, same), strict=True), strict=True)))

    def _take_columns(self, columns: Mapping[str, tuple[Any, ...]]) -> None:
        """Add lines with the same keys to the curves, a column at a time."""
        steps = columns["step"]
        if columns["kind"][0] == "train" and _all_numbers(columns.get("time", (None,))):
            self._times.extend(steps, columns["time"])
        for key, values in columns.items():
            if key in NOT_METRICS:
                continue
            if _all_numbers(values):
                self._curve(key).extend(steps, values)
                continue
            numbers = [(step, value) for step, value in zip(steps, values, strict=True) if _is_number(value)]
            if numbers:
                self._curve(key).extend(*zip(*numbers, strict=True))

    def _curve(self, key: str) -> Curve:
        if key not in self._curves and len(self._curves) >= CURVES_KEPT:
            return Curve()  # not kept
        return self._curves.setdefault(key, Curve())

    def _take_event(self, row: dict[str, Any], step: int) -> None:
        request, outcome, at = row.get("request"), row.get("outcome"), row.get("time")
        self.events.append(
            Event(
                step,
                float(at) if _is_number(at) else 0.0,
                str(row.get("message", "")),
                request if isinstance(request, str) else None,
                outcome if isinstance(outcome, str) else None,
                row.get("health") is True,
            )
        )
        if row.get("pace") == "restart":  # the run had stopped or paused
            self._pace.clear()

    def _forget(self) -> None:
        self.last.clear()
        self.events.clear()
        self._curves.clear()
        self._times = Curve()
        self._forget_outline()
        self._pace.clear()
        self._sample()

    # ------------------------------------------------------------ the outline

    def _forget_outline(self) -> None:
        self._outline.clear()
        self._outline_times.clear()

    def _sample(self) -> None:
        """Take lines at equal distances from a large file, as single points."""
        try:
            with open_regular(self.reader.paths.metrics) as handle:
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
        if row.get("kind") not in _KINDS or type(step) is not int or not 0 <= step < _LARGEST_STEP:
            return
        if row["kind"] == "train" and _is_number(at := row.get("time")):
            self._outline_times.append(Bucket(step, step, at, at))
        for key, value in row.items():
            if key not in NOT_METRICS and _is_number(value):
                points = self._outline.setdefault(key, [])
                if not points or points[-1].last < step:
                    points.append(Bucket(step, step, value, value))


def _all_numbers(values: Sequence[Any]) -> bool:
    """Whether every value is a float that can be drawn; quicker than to ask for each."""
    return set(map(type, values)) == {float} and all(map(math.isfinite, values))


def _is_number(value: object) -> TypeGuard[float]:
    """Whether a value can be drawn: finite, and no larger than a float can be."""
    return isinstance(value, float | int) and not isinstance(value, bool) and -1e300 < value < 1e300
