"""Bars: names of any text, cut to the width; the share that is filled; and the true match."""

from rich.cells import cell_len
from textual.app import App, ComposeResult

from clip_tui.theme import GREEN
from clip_tui.widgets.bars import EMPTY, FULL, HALF, Bar, Bars
from tests.tui.conftest import HOSTILE


class BarsApp(App[None]):
    def compose(self) -> ComposeResult:
        yield Bars()


async def _lines(bars: list[Bar], width: int = 60, empty: str = "") -> list[str]:
    app = BarsApp()
    async with app.run_test(size=(width, 20)) as pilot:
        app.query_one(Bars).show(bars, empty)
        await pilot.pause()
        return app.query_one(Bars).render().plain.splitlines()


async def test_a_bar_is_filled_by_its_share() -> None:
    full, half, none = await _lines([Bar("a", 1.0, "1"), Bar("b", 0.5, "2"), Bar("c", 0.0, "3")])
    assert EMPTY not in full
    assert FULL not in none
    assert HALF not in none
    assert abs(half.count(FULL) - half.count(EMPTY)) <= 1


async def test_shares_outside_of_zero_to_one_stay_within_the_bar() -> None:
    over, under = await _lines([Bar("a", 7.0, "7"), Bar("b", -1.0, "-1")])
    assert len(over) == len(under)


async def test_every_line_fits_into_the_width_whatever_the_names_are() -> None:
    for width in (20, 40, 80):
        lines = await _lines([Bar(name * 3, 0.5, "0.50") for name in HOSTILE], width)
        assert len(lines) == len(HOSTILE)
        assert all(cell_len(line) <= width for line in lines)


async def test_the_true_match_is_marked_and_green() -> None:
    app = BarsApp()
    async with app.run_test(size=(60, 5)) as pilot:
        app.query_one(Bars).show([Bar("wrong", 0.9, "0.9"), Bar("right", 0.5, "0.5", right=True)])
        await pilot.pause()
        text = app.query_one(Bars).render()
    first, second = text.plain.splitlines()
    assert "✓" not in first
    assert second.endswith("✓")
    assert any(GREEN in str(span.style) for span in text.spans)


async def test_without_bars_the_hint_is_shown() -> None:
    assert await _lines([], empty="Enter classifies") == ["Enter classifies"]


async def test_where_a_bar_would_say_nothing_its_room_is_that_of_the_name() -> None:
    (line,) = await _lines([Bar("a yellow triangle", 0.5, "0.50")], 20)
    assert line == " 1 a yellow t… 0.50"[:20]
