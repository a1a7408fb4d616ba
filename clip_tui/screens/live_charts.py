"""The charts of Live: which are shown, and the keys and the mouse that change how."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from textual import on, work

from clip_tui.charts import axis_end, charts
from clip_tui.screens.page import Page
from clip_tui.watcher import RunWatch, Snapshot
from clip_tui.widgets.axes import Smoothing, View, XAxis, panned, zoomed
from clip_tui.widgets.plot import Plot
from clip_tui.widgets.sparks import Sparks

PLOTS = 4
OVERLAY_SECONDS = 2.0  # between two looks at the other runs
_CURSOR_STEPS = 100  # key presses from one end of a chart to the other
_Choice = TypeVar("_Choice")


class ChartsPage(Page):
    """A page with the widgets `#plot-0` to `#plot-3` and `Sparks`; zoom and cursor are those of all charts."""

    def __init__(self) -> None:
        super().__init__()
        self._first_chart = 0
        self._view = View()
        self._others: list[Snapshot] = []  # the runs that are drawn over this one

    def on_mount(self) -> None:
        self._follow_others()

    def _reset_charts(self) -> None:
        """Another run: the whole of it."""
        self._first_chart = 0
        self._view = replace(self._view, first=None, last=None, cursor=None)

    def _show_charts(self, snapshot: Snapshot) -> None:
        every = charts(snapshot, self._view, self._others)
        for index in range(PLOTS):
            self.query_one(f"#plot-{index}", Plot).show(every[(self._first_chart + index) % len(every)], self._view)
        self.query_one("#sparks", Sparks).show(snapshot, axis_end((snapshot,)))

    def _change_view(self, view: View) -> None:
        self._view = view
        if self.snapshot:
            self._show_charts(self.snapshot)

    @property
    def _end(self) -> float:
        """The last step of the axis."""
        return axis_end((self.snapshot, *self._others)) if self.snapshot else 1.0

    def _middle(self) -> float:
        first, last = self._view.first or 0.0, self._end if self._view.last is None else self._view.last
        return self._view.cursor if self._view.cursor is not None else (first + last) / 2

    def action_more(self) -> None:
        if self.snapshot:
            shown = sum(1 for index in range(PLOTS) if self.query_one(f"#plot-{index}").display)
            self._first_chart = (self._first_chart + shown) % len(charts(self.snapshot, self._view, self._others))
            self._show_charts(self.snapshot)

    def action_log_axis(self, axis: str) -> None:
        view = self._view
        self._change_view(replace(view, log_y=not view.log_y) if axis == "y" else replace(view, log_x=not view.log_x))

    def action_smooth(self) -> None:
        self._change_view(replace(self._view, smoothing=_next(list(Smoothing), self._view.smoothing)))

    def action_x_axis(self) -> None:
        self._change_view(replace(self._view, axis=_next(list(XAxis), self._view.axis)))

    def action_cursor(self, by: int) -> None:
        """Move the cursor over all charts; it begins at the end of the curves."""
        first, last = self._view.first or 0.0, self._end if self._view.last is None else self._view.last
        if self._view.cursor is None:
            begin = min(last, float(self.snapshot.step)) if self.snapshot else last
            self._change_view(replace(self._view, cursor=begin))
            return
        cursor = self._view.cursor + by * max(1.0, (last - first) / _CURSOR_STEPS)
        self._change_view(replace(self._view, cursor=float(round(min(max(first, cursor), last)))))

    def action_zoom(self, factor: float) -> None:
        self._change_view(zoomed(self._view, factor, self._middle(), self._end))

    def action_pan(self, share: float) -> None:
        self._change_view(panned(self._view, share, self._end))

    def action_whole(self) -> None:
        self._change_view(replace(self._view, first=None, last=None, cursor=None))

    def action_large(self) -> None:
        """One chart over the whole width, that with the focus if one has it; or all of them."""
        focused = self.focused
        if isinstance(focused, Plot) and self.snapshot and not self.has_class("-one-chart"):
            index = [plot.id for plot in self.query(Plot)].index(focused.id)
            self._first_chart = (self._first_chart + index) % len(charts(self.snapshot, self._view, self._others))
            self.set_focus(self.query_one("#plot-0"))
        self.toggle_class("-one-chart")
        self.call_after_refresh(self._show_again)

    @on(Plot.Moved)
    def _plot_clicked(self, message: Plot.Moved) -> None:
        self._change_view(replace(self._view, cursor=float(round(message.step))))

    @on(Plot.Zoomed)
    def _plot_zoomed(self, message: Plot.Zoomed) -> None:
        self._change_view(zoomed(self._view, message.factor, message.step, self._end))

    @on(Plot.Panned)
    def _plot_panned(self, message: Plot.Panned) -> None:
        self._change_view(panned(self._view, -message.share, self._end))

    @work(name="overlays", group="overlays", exclusive=True)
    async def _follow_others(self) -> None:
        """Read the runs that are drawn over this one, while there are any."""
        watches: dict[Path, RunWatch] = {}
        while not self.closing:
            paths = [path for path in self.clip.overlays if self.snapshot is None or path != self.snapshot.path]
            watches = {path: watches.get(path) or RunWatch(path) for path in paths}
            others = [await asyncio.to_thread(watch.refresh) for watch in watches.values()]
            if self.closing:
                return
            if others != self._others:
                self._others = others
                if self.snapshot and self.is_current:
                    self._show_charts(self.snapshot)
            await asyncio.sleep(OVERLAY_SECONDS)


def _next(values: Sequence[_Choice], value: _Choice) -> _Choice:
    return values[(values.index(value) + 1) % len(values)]
