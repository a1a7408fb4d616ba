"""Curves as braille or ASCII."""

import pytest

from clip_core.run.curve import Bucket
from clip_tui.widgets.canvas import Canvas, Frame


@pytest.mark.parametrize("ascii_only", [False, True])
def test_every_value_of_a_curve_reaches_its_row_of_the_canvas(ascii_only: bool) -> None:
    buckets = [Bucket(step, step, value, value) for step, value in enumerate([0.0] * 50 + [1.0] + [0.0] * 50)]
    canvas = Canvas(20, 5, ascii_only=ascii_only)
    canvas.draw(0, buckets, Frame(0, 100, 0.0, 1.0))
    assert [sign for sign, series in canvas.row(0) if series == 0 and sign != " "]
    assert sum(sign != " " for sign, _ in canvas.row(4)) >= 19
