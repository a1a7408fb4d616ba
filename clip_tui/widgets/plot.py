"""A plot of curves over steps, with a legend, a labelled axis and every spike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text
from textual.widget import Widget

from clip_core.run.curve import Bucket
from clip_core.text import printable
from clip_tui.numbers import number, percent
from clip_tui.theme import SERIES
from clip_tui.widgets.canvas import Canvas, Frame

LABEL_WIDTH = 7
_SMALLEST = 1e-12  # what a logarithmic axis shows of zero and below


@dataclass(frozen=True)
class Line:
    """A named curve, with its latest value as text."""

    name: str
    buckets: Sequence[Bucket]
    latest: str = ""


@dataclass(frozen=True)
class Chart:
    """What a plot shows; with `share`, values are fractions in [0, 1] and the axis is in percent."""

    title: str
    lines: Sequence[Line] = ()
    share: bool = False
    log: bool = False
    last_step: int = 0  # the step that the axis goes to, at least


class Plot(Widget):
    """Shows a Chart."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._chart = Chart("")

    @property
    def chart(self) -> Chart:
        return self._chart

    def show(self, chart: Chart) -> None:
        """Draw `chart` if it is not the one that is shown already."""
        if chart != self._chart:
            self._chart = chart
            self.refresh()

    def render(self) -> Text:
        chart = self._chart
        width, height = self.content_size.width, self.content_size.height
        text = self._legend(chart, width)
        rows, columns = height - 2, width - LABEL_WIDTH - 1
        if rows > 7 and rows % 2 == 0:  # an odd number of rows has a middle to label
            rows -= 1
        drawn = [line for line in chart.lines if line.buckets]
        if rows < 2 or columns < 4:
            return text
        if not drawn:
            text.append("\n" * (height // 2) + "nothing measured yet".center(width), "dim")
            return text
        text.append("\n" * (height - 2 - rows))
        frame = frame_of(drawn, chart)
        canvas = Canvas(columns, rows, ascii_only="-ascii" in self.app.classes)
        for index, line in enumerate(chart.lines):
            canvas.draw(index, _scaled(line.buckets, chart.log), frame)
        for row in range(rows):
            text.append("\n")
            text.append(_label(row, rows, frame, chart).rjust(LABEL_WIDTH), "dim")
            text.append("┤" if _is_labelled(row, rows) else "│", "dim")
            for sign, series in canvas.row(row):
                text.append(sign, SERIES[series % len(SERIES)] if series >= 0 else "")
        text.append("\n" + " " * LABEL_WIDTH + "└" + _steps(frame, columns), "dim")
        return text

    def _legend(self, chart: Chart, width: int) -> Text:
        """The title, then each curve's name and latest value in its colour; what does not fit is left out."""
        text = Text(printable(chart.title), "bold", no_wrap=True)
        for index, line in enumerate(chart.lines):
            name = Text(f"  {printable(line.name, 24)} ".replace("   ", "  "), SERIES[index % len(SERIES)])
            name.append(line.latest, "bold")
            if text.cell_len + name.cell_len > width:
                break
            text.append_text(name)
        return text


def frame_of(lines: Sequence[Line], chart: Chart) -> Frame:
    """The plane that holds every value, with a little air; shares are shown from 0 to their own top."""
    buckets = [bucket for line in lines for bucket in _scaled(line.buckets, chart.log)]
    low, high = min(b.low for b in buckets), max(b.high for b in buckets)
    if chart.share:
        low, high = 0.0, max(1.0, high)
    elif high - low < 1e-12:
        low, high = low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9
    first = min(b.first for b in buckets)
    return Frame(first, max(chart.last_step, first + 1, *(b.last for b in buckets)), low, high)


def _scaled(buckets: Sequence[Bucket], log: bool) -> Sequence[Bucket]:
    if not log:
        return buckets
    return [Bucket(b.first, b.last, _log(b.low), _log(b.high)) for b in buckets]


def _log(value: float) -> float:
    return math.log10(max(value, _SMALLEST))


def _is_labelled(row: int, rows: int) -> bool:
    return row in (0, rows - 1) or (rows >= 5 and rows % 2 == 1 and row == rows // 2)


def _label(row: int, rows: int, frame: Frame, chart: Chart) -> str:
    if not _is_labelled(row, rows):
        return ""
    value = frame.high - (frame.high - frame.low) * row / (rows - 1)
    if chart.log:
        value = 10**value
    return percent(value, 0) if chart.share else number(value, 3)


def _steps(frame: Frame, columns: int) -> str:
    left, right = f" {frame.first:,.0f}", f"step {frame.last:,.0f}"
    middle = f"{(frame.first + frame.last) / 2:,.0f}"
    space = columns - len(left) - len(right)
    if space < len(middle) + 4:
        return left + right.rjust(columns - len(left)) if space > 0 else right.rjust(columns)
    return left + middle.center(space) + right
