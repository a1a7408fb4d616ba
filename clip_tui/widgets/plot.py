"""A plot of curves, drawn a row at a time: legend, labelled axes, every spike, the cursor and the best checkpoint."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.color import Color
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from clip_core.run.curve import Points
from clip_core.text import printable
from clip_tui.numbers import number, percent
from clip_tui.theme import SERIES, YELLOW
from clip_tui.widgets.axes import Scale, Smoothing, View, YRange, placed, y_range
from clip_tui.widgets.canvas import Canvas, Floats, Frame, Pen

LABEL_WIDTH = 7
ASCII_SIGNS, PLAIN_SIGNS = "*o+x#", "•o+×■"  # of the series, where colours do not tell them apart
_SMOOTH = 0.02  # of the width: the time constant of the EMA, and the width of a column of the band
_FAINT = 0.45  # of a colour over the background
_CURSOR, _BEST = "┊", "◆"
_PLACES = 4  # at which a column of a band is drawn


@dataclass(frozen=True)
class Line:
    """A named curve, with its latest value as text.

    Attributes:
        run: at the first curve of a run, where several are shown: its name.
    """

    name: str
    points: Points
    latest: str = ""
    run: str = ""


@dataclass(frozen=True)
class Chart:
    """What a plot shows.

    Attributes:
        share: values are fractions, and the axis is in percent.
        log: on a logarithmic axis.
        last_step: the step that the axis goes to, at least.
        best: the step of the best checkpoint.
    """

    title: str
    lines: Sequence[Line] = ()
    share: bool = False
    log: bool = False
    last_step: float = 0
    best: int | None = None
    scale: Scale = field(default_factory=Scale)


class Plot(Widget, can_focus=True):
    """Shows a Chart, whose title is marked while it has the focus. Click: the cursor; wheel: zoom; drag: pan."""

    class Moved(Message):
        """The cursor was put at a step."""

        def __init__(self, step: float) -> None:
            super().__init__()
            self.step = step

    class Zoomed(Message):
        """Zoom by a factor (above 1: nearer) around a step."""

        def __init__(self, factor: float, step: float) -> None:
            super().__init__()
            self.factor, self.step = factor, step

    class Panned(Message):
        """The curves were dragged to the right by a fraction of the width."""

        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._chart, self._view = Chart(""), View()
        self._strips: list[Strip] | None = None  # None: to be drawn
        self._frame = Frame(0, 1, 0, 1)
        self._held: tuple[int, bool] | None = None  # the column where a button was pressed last, and whether it moved

    @property
    def chart(self) -> Chart:
        return self._chart

    @property
    def frame(self) -> Frame:
        """What is shown: x in units of the axis, y in values or their logarithms."""
        return self._frame

    def show(self, chart: Chart, view: View | None = None) -> None:
        """Draw `chart` if it is not the one that is shown already."""
        view = view or View()
        if chart != self._chart or view != self._view:
            self._chart, self._view = chart, view
            self._strips = None
            self.refresh()

    def values_text(self) -> str:
        """The title, then a line for each curve: its name and its value at the cursor, or its last one."""
        lines = [
            " ".join(part for part in (line.run, line.name, self._value(line)) if part) for line in self._chart.lines
        ]
        return "\n".join([self._chart.title, *lines])

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips = None

    def on_resize(self) -> None:
        self._strips = None
        self.refresh()

    def render_line(self, y: int) -> Strip:
        if self._strips is None:
            width, style = self.size.width, self.rich_style
            drawn = [*self._drawn(), *[Strip([])] * self.size.height][: self.size.height]
            self._strips = [strip.apply_style(style).adjust_cell_length(width, style) for strip in drawn]
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width)

    # ------------------------------------------------------------ drawing

    def _drawn(self) -> list[Strip]:
        chart, (width, height) = self._chart, self.size
        rows, columns = height - 2, width - LABEL_WIDTH - 1
        if rows < 2 or columns < 8:
            return [self._strip(self._legend(width))]
        lines = [line for line in chart.lines if len(line.points)]
        if not lines:
            nothing = Text("nothing measured yet".center(width), "dim")
            return [self._strip(self._legend(width)), *[Strip([])] * (rows // 2), self._strip(nothing)]
        xs = {line: chart.scale.x((line.points.first + line.points.last) / 2) for line in set(lines)}
        first, last = self._range(lines, xs)
        y = self._y_range(lines, xs, first, last, rows)
        self._frame = frame = Frame(first, last, y.low, y.high)
        canvas = self._canvas(columns, rows)
        for index, line in enumerate(chart.lines):
            if line in xs:
                self._draw(canvas, index, line, xs[line], frame)
        cells = canvas.rows(self._marks(frame, columns, rows))
        dim = Style(dim=True)
        labels = _labels(y, rows)
        body = [
            Strip([Segment(labels.get(row, "").rjust(LABEL_WIDTH) + ("┤" if row in labels else "│"), dim), *cells[row]])
            for row in range(rows)
        ]
        return [self._strip(self._legend(width)), *body, Strip([Segment(self._x_labels(frame, columns), dim)])]

    def _strip(self, text: Text) -> Strip:
        return Strip(list(text.render(self.app.console)))

    def _canvas(self, columns: int, rows: int) -> Canvas:
        """A canvas with a bright pen for each line, then a faint one for each."""
        ascii_only = "-ascii" in self.app.classes
        signs = ASCII_SIGNS if ascii_only else PLAIN_SIGNS
        background = self.background_colors[1]
        bright, faint = [], []
        for index in range(len(self._chart.lines)):
            colour, sign = SERIES[index % len(SERIES)], signs[index % len(signs)]
            bright.append(Pen(Style(color=colour), sign))
            mixed = background.blend(Color.parse(colour), _FAINT).rich_color
            faint.append(Pen(Style(color=mixed), "." if ascii_only or self.app.no_color else sign, faint=True))
        return Canvas(columns, rows, [*bright, *faint], braille=not (ascii_only or self.app.no_color))

    def _draw(self, canvas: Canvas, index: int, line: Line, x: Floats, frame: Frame) -> None:
        low, high, mean = (self._scaled(each) for each in (line.points.low, line.points.high, line.points.mean))
        faint = len(self._chart.lines) + index
        if self._view.smoothing is Smoothing.OFF or len(x) < 3:
            canvas.draw(index, x, low, high, frame)
        elif self._view.smoothing is Smoothing.EMA:
            canvas.draw(faint, x, low, high, frame)
            smooth = ema(x, mean, _SMOOTH * (frame.last - frame.first))
            canvas.draw(index, x, smooth, smooth, frame)
        else:
            places, bottom, top, middle = band(x, low, high, mean, frame, canvas.width // 2)
            canvas.draw(faint, places, bottom, top, frame)
            canvas.draw(index, places, middle, middle, frame)

    def _scaled(self, values: Floats) -> Floats:
        return np.log10(np.maximum(values, 1e-12)) if self._chart.log else values

    def _range(self, lines: Sequence[Line], xs: dict[Line, Floats]) -> tuple[float, float]:
        """From left to right, in units of the axis."""
        scale, view = self._chart.scale, self._view
        last = max(float(scale.x(np.array([self._chart.last_step]))[0]), *(float(xs[line][-1]) for line in lines), 0.0)
        first = min(0.0, *(float(xs[line][0]) for line in lines))
        last = scale.end(max(last, first + 1e-9))
        if view.first is not None:
            first = float(scale.x(np.array([view.first]))[0])
        if view.last is not None:
            last = float(scale.x(np.array([view.last]))[0])
        return first, max(last, first + 1e-9)

    def _y_range(self, lines: Sequence[Line], xs: dict[Line, Floats], first: float, last: float, rows: int) -> YRange:
        low, high = math.inf, -math.inf
        for line in lines:
            inside = (xs[line] >= first) & (xs[line] <= last)
            if not inside.any():
                inside[:] = True
            lows = line.points.low[inside]
            if self._chart.log:
                lows = lows[lows > 0]
            if len(lows):
                low = min(low, float(lows.min()))
            high = max(high, float(line.points.high[inside].max()))
        return y_range(min(low, high), high, rows, log=self._chart.log, share=self._chart.share)

    def _marks(self, frame: Frame, columns: int, rows: int) -> dict[tuple[int, int], tuple[str, Style]]:
        """The cursor, and the best checkpoint at the top."""
        marks: dict[tuple[int, int], tuple[str, Style]] = {}
        if self._view.cursor is not None and (x := self._column(self._view.cursor, frame, columns)) is not None:
            marks |= {(x, row): (_CURSOR, Style(dim=True)) for row in range(rows)}
        if self._chart.best is not None and (x := self._column(self._chart.best, frame, columns)) is not None:
            marks[x, 0] = (_BEST, Style(color=YELLOW))
        return marks

    def _column(self, step: float, frame: Frame, columns: int) -> int | None:
        place = float(self._chart.scale.x(np.array([float(step)]))[0])
        share = (place - frame.first) / (frame.last - frame.first)
        return round(share * (columns - 1)) if 0 <= share <= 1 else None

    def _x_labels(self, frame: Frame, columns: int) -> str:
        unit = self._chart.scale.axis.value
        room = columns - len(unit) - 2
        ticks = self._chart.scale.ticks(frame.first, frame.last, max(2, room // 12))
        wide = frame.last - frame.first
        row = [" "] * columns
        labels = [(round((x - frame.first) / wide * (columns - 1)), label) for x, label in ticks]
        for start, label in placed(labels, room):
            row[start : start + len(label)] = label
        row[columns - len(unit) :] = unit
        return " " * LABEL_WIDTH + "└" + "".join(row)

    def _legend(self, width: int) -> Text:
        """The title, the cursor's step, how it is drawn, then each curve's name and value in its colour.

        What does not fit is left out, with dots.
        """
        chart, cursor = self._chart, self._view.cursor
        text = Text(
            printable(chart.title), "bold reverse" if self.has_focus else "bold", no_wrap=True, overflow="ellipsis"
        )
        text.truncate(width, overflow="ellipsis")
        notes = [f"@{cursor:,.0f}"] if cursor is not None else []
        notes += ["log"] if chart.log else []
        notes += [self._view.smoothing.value] if self._view.smoothing is not Smoothing.OFF else []
        note = Text(f"  {' · '.join(notes)}" if notes else "", "dim")
        if text.cell_len + note.cell_len <= width:
            text.append_text(note)
        plain, ascii_only = self.app.no_color, "-ascii" in self.app.classes
        signs = ASCII_SIGNS if ascii_only else PLAIN_SIGNS
        for index, line in enumerate(chart.lines):
            name = " ".join(part for part in (printable(line.run, 16), printable(line.name, 24)) if part)
            sign = f"{signs[index % len(signs)]} " if plain or ascii_only else ""
            part = Text("  ").append(f"{sign}{name} ".lstrip(), SERIES[index % len(SERIES)])
            part.append(self._value(line), f"bold {SERIES[index % len(SERIES)]}")
            if text.cell_len + part.cell_len > width - 2 * (index + 1 < len(chart.lines)):
                text.append(" …"[: width - text.cell_len], "dim")
                return text
            text.append_text(part)
        return text

    def _value(self, line: Line) -> str:
        """At the cursor, or the last one."""
        step, points = self._view.cursor, line.points
        if step is None:
            return line.latest
        if not len(points) or step < points.first[0] - 0.5:
            return "–"
        value = float(points.mean[max(0, int(np.searchsorted(points.first, step + 0.5)) - 1)])
        return percent(value) if self._chart.share else number(value)

    # ------------------------------------------------------------ mouse

    def step_at(self, column: int) -> float:
        """The step in a column of the widget."""
        columns = max(2, self.size.width - LABEL_WIDTH - 1)
        share = min(1.0, max(0.0, (column - LABEL_WIDTH - 1) / (columns - 1)))
        return self._chart.scale.step(self._frame.first + share * (self._frame.last - self._frame.first))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.post_message(self.Zoomed(1.25, self.step_at(event.x)))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.post_message(self.Zoomed(0.8, self.step_at(event.x)))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self._held = (event.x, False)
        self.capture_mouse()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self._held is not None and event.x != self._held[0]:
            columns = max(2, self.size.width - LABEL_WIDTH - 1)
            self.post_message(self.Panned((event.x - self._held[0]) / columns))
            self._held = (event.x, True)

    def on_mouse_up(self, event: events.MouseUp) -> None:
        held, self._held = self._held, None
        self.release_mouse()
        if held is not None and not held[1]:
            self.post_message(self.Moved(self.step_at(event.x)))


def ema(x: Floats, values: Floats, constant: float) -> Floats:
    """Exponential moving average over x, whatever the distance of the points.  (N,), (N,) -> (N,)

    Args:
        constant: the distance after which a value counts 1/e.
    """
    keeps = np.exp(-np.diff(x, prepend=x[:1]) / max(constant, 1e-12)).tolist()
    smooth, last = [], float(values[0])
    for value, keep in zip(values.tolist(), keeps, strict=True):
        last = keep * last + (1 - keep) * value
        smooth.append(last)
    return np.array(smooth)


def band(
    x: Floats, low: Floats, high: Floats, mean: Floats, frame: Frame, columns: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Minimum, maximum and mean over columns of the frame.  Places, four a column, then the three there: (P,) each"""
    width = (frame.last - frame.first) / max(1, columns)
    column = np.floor((x - frame.first) / width).astype(np.int64)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(column)) + 1))
    counts = np.diff(np.append(starts, len(x)))
    centres = frame.first + (column[starts] + 0.5) * width
    lows, highs = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
    means = np.add.reduceat(mean, starts) / counts
    begin, end = max(frame.first, float(x[0])), min(frame.last, float(x[-1]))
    places = np.linspace(begin, max(begin, end), _PLACES * max(1, columns))
    low, high, mean = (np.interp(places, centres, each) for each in (lows, highs, means))
    return places, low, high, mean


def _labels(y: YRange, rows: int) -> dict[int, str]:
    """The labels of the y axis by row."""
    wide = (y.high - y.low) or 1.0
    return {round((y.high - value) / wide * (rows - 1)): label[:LABEL_WIDTH] for value, label in y.ticks}
