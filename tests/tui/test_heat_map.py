"""Matrices as cells."""

import numpy as np
import pytest
from textual.app import App, ComposeResult

from clip_tui.widgets.heat_map import HeatMap, Matrix, pool
from tests.tui.pilot import strip_text


class OneMap(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[tuple[int, int, bool]] = []

    def compose(self) -> ComposeResult:
        yield HeatMap()

    def on_heat_map_chosen(self, message: HeatMap.Chosen) -> None:
        self.chosen.append((message.row, message.column, message.opened))


def test_pooling_keeps_the_highest_value_of_every_block() -> None:
    levels = np.zeros((512, 512), np.int64)
    levels[377, 401] = 31
    small = pool(levels, 40, 100)
    assert small.shape == (40, 100)
    assert np.argwhere(small == 31).tolist() == [[377 * 40 // 512, 401 * 100 // 512]]


async def test_cells_are_chosen_by_keys_and_mouse_and_opened_by_the_second_click() -> None:
    app = OneMap()
    async with app.run_test(size=(40, 10)) as pilot:
        heat = app.query_one(HeatMap)
        heat.show(np.eye(8), diagonal=True)
        heat.focus()
        await pilot.press("down", "right", "right", "enter")
        assert app.chosen[-2:] == [(1, 2, False), (1, 2, True)]
        app.chosen.clear()
        await pilot.click(HeatMap, offset=(heat.cell_width * 4 + 1, 3))
        await pilot.click(HeatMap, offset=(heat.cell_width * 4 + 1, 3))
        assert app.chosen == [(3, 4, False), (3, 4, True)]
        await pilot.press("up", "up", "up", "up", "up")
        assert heat.cursor == (0, 4)


@pytest.mark.parametrize("matrix", [np.zeros((0, 0)), np.full((3, 3), np.nan), np.ones((2, 90))])
async def test_odd_matrices_are_drawn(matrix: Matrix) -> None:
    app = OneMap()
    async with app.run_test(size=(20, 5)) as pilot:
        app.query_one(HeatMap).show(matrix)
        app.query_one(HeatMap).focus()
        await pilot.press("right", "enter")
        await pilot.click(HeatMap, offset=(19, 4))
        assert len(strip_text(app.query_one(HeatMap).render_line(0))) == 20


async def test_each_line_says_which_rows_it_shows() -> None:
    app = OneMap()
    async with app.run_test(size=(40, 4)) as pilot:
        heat = app.query_one(HeatMap)
        heat.show(np.eye(4))
        await pilot.pause()
        assert [list(line) for line in heat.lines] == [[0], [1], [2], [3]]
        heat.show(np.eye(9))
        assert [list(line) for line in heat.lines] == [[0, 1], [2, 3], [4, 5], [6, 7, 8]]
        assert len(heat._drawn()) == len(heat.lines)


async def test_before_it_has_a_size_it_shows_no_rows() -> None:
    app = OneMap()
    async with app.run_test(size=(40, 10)) as pilot:
        heat = app.query_one(HeatMap)
        heat.display = False
        await pilot.pause()
        heat.show(np.eye(8), diagonal=True)
        assert heat.lines == []


async def test_without_colours_a_click_chooses_the_row_that_its_line_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = OneMap()
    async with app.run_test(size=(40, 8)) as pilot:
        heat = app.query_one(HeatMap)
        heat.show(np.eye(12))  # one row of cells a line, not two
        await pilot.pause()
        await pilot.click(HeatMap, offset=(0, 7))
        assert app.chosen == [(heat.lines[7].start, 0, False)]
