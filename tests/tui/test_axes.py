"""Axes: round ranges that hold the data, labels that fit, and zoom that stays within the run."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clip_core.run.curve import Bucket, Points
from clip_tui.widgets.axes import Scale, View, XAxis, panned, placed, y_range, zoomed

VALUES = st.floats(-1e6, 1e6, allow_nan=False)


@given(VALUES, VALUES, st.integers(2, 40), st.booleans(), st.booleans())
@example(0.5, 0.03125, 2, True, False)
def test_a_range_holds_its_values_and_its_labels_are_inside(a: float, b: float, rows: int, log: bool, share: bool):
    low, high = min(a, b), max(a, b)
    found = y_range(low, high, rows, log=log, share=share and not log)
    floor, ceiling = (np.log10(np.maximum([low, high], 1e-12))) if log else (low, high)
    slack = 1e-9 * max(1.0, abs(floor), abs(ceiling)) + 1e-9
    assert found.low <= floor + slack
    assert found.high >= ceiling - slack
    assert found.low < found.high
    assert all(found.low - slack <= value <= found.high + slack for value, _ in found.ticks)
    assert len(found.ticks) <= max(4, rows)


def test_a_range_seldom_changes_while_values_grow() -> None:
    ranges = {y_range(0.0, high, 12, log=False, share=True) for high in np.linspace(0.05, 0.8, 200)}
    assert len(ranges) <= 12
    assert y_range(0.0, 0.184, 12, log=False, share=True).high == pytest.approx(0.2)  # of the data, not 100%


@given(st.floats(0.1, 10), st.floats(0, 1000), st.lists(st.floats(0.2, 5), max_size=8))
def test_zoom_stays_within_the_run(factor: float, around: float, more: list[float]) -> None:
    view = View()
    for each in (factor, *more):
        view = zoomed(view, each, around, 1000)
        if view.first is not None and view.last is not None:
            assert -1e-9 <= view.first < view.last <= 1000 + 1e-9
            view = panned(view, each - 1, 1000)
    assert zoomed(view, 1e-9, around, 1000).first is None


def test_zoom_keeps_the_step_under_the_mouse_in_its_place() -> None:
    view = zoomed(View(), 2.0, 300, 1000)
    assert (view.first, view.last) == (150, 650)


def test_time_and_images_are_axes_too() -> None:
    times = Points.of([Bucket(step, step, 1000.0 + step / 2, 1000.0 + step / 2) for step in range(1, 101)])
    time = Scale(XAxis.TIME, times=times)
    assert time.x(np.array([1.0, 51.0])).tolist() == [0.0, 25.0]
    assert time.step(25.0) == 51.0
    assert time.end(49.5) == 50
    assert Scale(XAxis.IMAGES, batch=32).x(np.array([10.0])).tolist() == [320.0]
    assert Scale(XAxis.IMAGES, batch=32).step(320.0) == 10.0
    assert [label for _, label in Scale(XAxis.TIME).ticks(0, 7200, 8)] == [
        "0s",
        "20m",
        "40m",
        "1h",
        "1h20",
        "1h40",
        "2h",
    ]


def test_labels_that_would_touch_are_left_out() -> None:
    assert list(placed([(0, "0"), (2, "10"), (10, "1,000"), (19, "20")], 20)) == [(0, "0"), (8, "1,000"), (18, "20")]
