"""Curves as braille or as signs."""

import numpy as np
import pytest
from rich.style import Style

from clip_tui.widgets.canvas import Canvas, Frame, Pen

FRAME = Frame(0, 100, 0.0, 1.0)


def text_of(canvas: Canvas) -> list[str]:
    return ["".join(segment.text for segment in row) for row in canvas.rows({})]


@pytest.mark.parametrize("braille", [False, True])
def test_every_value_of_a_curve_reaches_its_row_of_the_canvas(braille: bool) -> None:
    values = np.array([0.0] * 50 + [1.0] + [0.0] * 50)
    canvas = Canvas(20, 5, [Pen(Style())], braille=braille)
    canvas.draw(0, np.arange(101.0), values, values, FRAME)
    rows = text_of(canvas)
    assert rows[0].strip()
    assert sum(sign != " " for sign in rows[4]) >= 19


def test_a_spike_between_two_columns_of_many_points_is_drawn() -> None:
    x = np.arange(100_000.0)
    values = np.zeros(len(x))
    values[33_333] = 1.0
    canvas = Canvas(20, 5, [Pen(Style())])
    canvas.draw(0, x, values, values, Frame(0, x[-1], 0.0, 1.0))
    assert [column for column, sign in enumerate(text_of(canvas)[0]) if sign != " "] == [6]


def test_curves_differ_by_their_signs_and_a_bright_one_covers_a_faint_one() -> None:
    x = np.array([0.0, 100.0])
    pens = [Pen(Style(), "*"), Pen(Style(), "o"), Pen(Style(), ".", faint=True)]
    canvas = Canvas(10, 3, pens, braille=False)
    canvas.draw(2, x, np.zeros(2), np.ones(2), FRAME)
    canvas.draw(0, x, np.ones(2), np.ones(2), FRAME)
    canvas.draw(1, x, np.zeros(2), np.zeros(2), FRAME)
    rows = text_of(canvas)
    assert (rows[0], rows[2]) == ("*" * 10, "o" * 10)
    assert rows[1][0] == rows[1][-1] == "."


def test_a_zoomed_frame_shows_the_line_between_points_outside() -> None:
    canvas = Canvas(10, 3, [Pen(Style())])
    canvas.draw(0, np.array([0.0, 100.0]), np.array([0.5, 0.5]), np.array([0.5, 0.5]), Frame(40, 60, 0.0, 1.0))
    assert " " not in text_of(canvas)[1]


def test_points_out_of_the_frame_draw_nothing() -> None:
    canvas = Canvas(10, 3, [Pen(Style())])
    x = np.array([1e300, 1e301])
    canvas.draw(0, x, x, x, FRAME)
    assert all(not row.strip() for row in text_of(canvas))
