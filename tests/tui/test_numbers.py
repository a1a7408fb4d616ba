"""How numbers and times are written."""

import math

import pytest

from clip_tui.numbers import duration, number, percent


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (273_600, "3 d 4 h")]
)
def test_durations_read_well(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0.0"),
        (0.00012, "1.2e-04"),
        (1.23456, "1.235"),
        (1234.5, "1,234"),
        (True, "–"),
    ],
)
def test_numbers_read_well(value: float | None, said: str) -> None:
    assert number(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.1838, "18.4%"), (1, "100.0%"), (0.0, "0.0%"), (None, "–"), (math.nan, "–"), ("0.5", "–")]
)
def test_a_share_is_a_percentage_and_anything_else_a_dash(value: object, said: str) -> None:
    assert percent(value) == said
