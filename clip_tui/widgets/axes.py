"""The axes of a plot: what x means, the range that is shown, and where its labels stand."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from clip_core.run.curve import Points
from clip_tui.numbers import number, percent
from clip_tui.widgets.canvas import Floats

_TIMES = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 28_800, 43_200, 86_400)  # seconds
_NEAREST = 10.0  # steps, of the deepest zoom
_SMALLEST = 1e-12  # what a logarithmic axis shows of zero and below


class XAxis(StrEnum):
    """What is counted from left to right."""

    STEP = "step"
    TIME = "time"
    IMAGES = "images"


class Smoothing(StrEnum):
    """How noisy curves are drawn: every value; an EMA over them; the mean in a band from minimum to maximum."""

    OFF = "off"
    EMA = "EMA"
    BAND = "band"


@dataclass(frozen=True)
class View:
    """How all charts of a screen are drawn. Steps, so that it keeps its meaning when the axis changes.

    Attributes:
        first, last: the steps that are zoomed to; None for the whole run.
        cursor: the step whose values are shown.
    """

    axis: XAxis = XAxis.STEP
    log_x: bool = False
    log_y: bool = False
    smoothing: Smoothing = Smoothing.OFF
    first: float | None = None
    last: float | None = None
    cursor: float | None = None


def zoomed(view: View, factor: float, around: float, end: float) -> View:
    """Nearer (factor above 1) or farther, with a step that stays in its place; the whole run is the farthest.

    Args:
        end: the last step of the axis.
    """
    first, last = view.first or 0.0, end if view.last is None else view.last
    around = min(max(around, first), last)
    wide = (last - first) / factor
    if wide >= end:
        return replace(view, first=None, last=None)
    wide = max(wide, min(_NEAREST, end))
    start = min(max(0.0, around - (around - first) / ((last - first) or 1.0) * wide), end - wide)
    return replace(view, first=start, last=start + wide)


def panned(view: View, share: float, end: float) -> View:
    """Further right by a fraction of the width; nothing where the whole run is shown."""
    if view.first is None or view.last is None:
        return view
    wide = view.last - view.first
    start = min(max(0.0, view.first + share * wide), max(0.0, end - wide))
    return replace(view, first=start, last=start + wide)


@dataclass(frozen=True)
class Scale:
    """Steps to the places on the x axis.

    Attributes:
        batch: images of a step.
        times: when the steps were done, for an axis of time; without, time is counted in steps.
    """

    axis: XAxis = XAxis.STEP
    log: bool = False
    batch: int = 1
    times: Points | None = None

    def x(self, steps: Floats) -> Floats:
        """Places of steps, in units of the axis.  (N,) -> (N,)"""
        values = steps
        if self.axis is XAxis.IMAGES:
            values = steps * self.batch
        elif self.axis is XAxis.TIME and self.times is not None and len(self.times):
            ends, at = self.times.last, self.times.mean
            values = np.interp(steps, ends, at - at[0])
        return np.log10(np.maximum(values, 1.0)) if self.log else values

    def step(self, x: float) -> float:
        """The step at a place of the axis."""
        value = 10**x if self.log else x
        if self.axis is XAxis.IMAGES:
            return value / max(1, self.batch)
        if self.axis is XAxis.TIME and self.times is not None and len(self.times):
            at = self.times.mean - self.times.mean[0]
            return float(np.interp(value, at, self.times.last))
        return value

    def end(self, x: float) -> float:
        """The end of an axis on which `x` is the last place: rounded up where it grows as the run goes on."""
        if self.axis is not XAxis.TIME or self.log:
            return x
        step = next((step for step in _TIMES if x <= 12 * step), 86_400 * max(1, math.ceil(x / 86_400 / 12)))
        return step * math.ceil(max(x, 1e-9) / step)

    def ticks(self, first: float, last: float, most: int) -> list[tuple[float, str]]:
        """Places with their labels, at most about `most`."""
        if self.log:
            return [(math.log10(value), self._label(value)) for value in _log_ticks(10**first, 10**last, most)]
        if self.axis is XAxis.TIME:
            step = next((step for step in _TIMES if (last - first) / step <= most), 86_400.0 * 7)
            return [(x, _clock(x)) for x in _multiples(first, last, step)]
        return [(x, self._label(x)) for x in _multiples(first, last, max(1.0, nice_step(last - first, most)))]

    def _label(self, value: float) -> str:
        return _clock(value) if self.axis is XAxis.TIME else short_count(value)


@dataclass(frozen=True)
class YRange:
    """The values that are shown, with labels; of a logarithmic axis, their logarithms to base 10."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


def y_range(low: float, high: float, rows: int, *, log: bool, share: bool) -> YRange:
    """A range of round numbers that holds `low` to `high`, so that it seldom changes; shares begin at 0."""
    most = max(2, rows // 3)
    if log:
        low, high = max(low, _SMALLEST), max(high, _SMALLEST)
        bottom, top = 10 ** math.floor(math.log10(low) + 1e-9), 10 ** math.ceil(math.log10(high) - 1e-9)
        bottom = next((bottom * part for part in (5, 2) if bottom * part <= low), bottom)
        top = next((top * part for part in (0.2, 0.5) if top * part >= high), top)
        if bottom >= top:
            bottom, top = bottom / 2, top * 2
        ticks = tuple((math.log10(value), number(value, 3)) for value in _log_ticks(bottom, top, most))
        return YRange(math.log10(bottom), math.log10(top), ticks)
    if share:
        low = min(0.0, low)
        high = max(high, low + 1e-3)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9
    step = nice_step(high - low, most)
    bottom, top = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step * 100) + 1e-9)) if share else 0
    places = _multiples(bottom, top, step)
    labels = [percent(value, digits) if share else _plain(value, step) for value in places]
    return YRange(bottom, top, tuple(zip(places, labels, strict=True)))


def nice_step(span: float, most: int) -> float:
    """1, 2 or 5 times a power of ten, so that at most `most` of them are in `span`."""
    rough = max(span, 1e-300) / max(1, most)
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next((power * part for part in (1.0, 2.0, 5.0) if power * part >= rough * (1 - 1e-9)), power * 10)


def _multiples(first: float, last: float, step: float) -> list[float]:
    begin, end = math.ceil(first / step - 1e-6), math.floor(last / step + 1e-6)
    return [step * count for count in range(begin, min(end, begin + 100) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """1, 2 and 5 times powers of ten, or powers alone, or every second power, ... where there would be too many."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    found = [part * 10.0**power for power in range(first, last + 1) for part in (1, 2, 5)]
    found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    powers = [value for value in found if abs(math.log10(value) - round(math.log10(value))) < 1e-9]
    if len(found) <= max(most, 2):
        return found
    if len(powers) < 2:
        return found[:: math.ceil(len(found) / max(most, 4))]
    return powers[:: max(1, math.ceil(len(powers) / most))]


def _plain(value: float, step: float) -> str:
    """A value with the decimals that a step of the axis needs."""
    if abs(value) >= 100_000 or (value and abs(step) < 1e-4):
        return f"{value:.3g}"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def short_count(value: float) -> str:
    """`720`, `12k`, `1.5M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:,.0f}"


def _clock(seconds: float) -> str:
    """`45s`, `3m`, `1h30`, `2d`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m" + (f"{whole % 60:02d}" if whole % 60 else "")
    if whole < 86_400:
        return f"{whole // 3600}h" + (f"{whole % 3600 // 60:02d}" if whole % 3600 // 60 else "")
    return f"{whole / 86_400:.3g}d"


def placed(labels: list[tuple[int, str]], width: int) -> Iterator[tuple[int, str]]:
    """Labels centred at their columns within `width`, without those that would touch the one before."""
    free = 0
    for column, label in labels:
        start = min(max(0, column - len(label) // 2), width - len(label))
        if start >= free and start >= 0:
            yield start, label
            free = start + len(label) + 2
