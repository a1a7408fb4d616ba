"""Sixel: what is sent is the image, wherever the screen shows a part of it."""

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.segment import Segment
from textual.strip import Strip

from clip_tui.images import CELL, Way
from clip_tui.output import Shown
from clip_tui.settings import Settings
from clip_tui.widgets import sixel as module
from clip_tui.widgets.sixel import Sixel, encoded, quantised, rectangles
from tests.tui.test_output import CONSOLE

COLUMNS, ROWS = 24, 8


class SixelTerminal:
    """The pixels of a terminal: a text takes those of its cell away (-1), a sequence draws some. In percent."""

    def __init__(self) -> None:
        self.pixels = np.full((ROWS * CELL[1], COLUMNS * CELL[0], 3), -1)
        self.cell = CELL
        self._y = self._x = 0

    def feed(self, stream: str) -> None:
        for row, column, sixel, text in re.findall(
            r"\x1b\[(\d+);(\d+)H|\x1bP0;1q([^\x1b]*)\x1b\\|\x1b[78]|\x1b\[[\d;]*m|([^\x1b])", stream
        ):
            if row:
                self._y, self._x = int(row) - 1, int(column) - 1
            elif text:
                self._cells(1, 1)[:] = -1
                self._x += 1
            elif sixel:
                drawn = decoded(sixel)
                self._cells(drawn.shape[0] // self.cell[1], drawn.shape[1] // self.cell[0])[:] = drawn

    def _cells(self, high: int, wide: int) -> np.ndarray:
        width, height = self.cell
        top, left = self._y * height, self._x * width
        return self.pixels[top : top + high * height, left : left + wide * width]


def decoded(body: str) -> np.ndarray:
    """The pixels of a sequence, in percent, int (H, W, 3); all must be set, and none outside."""
    width, height, rest = re.fullmatch(r'"1;1;(\d+);(\d+)(.*)', body).groups()  # type: ignore[union-attr]
    pixels = np.full((int(height) + 6, int(width), 3), -1)
    colours: dict[str, list[int]] = {}
    x = y = 0
    colour = ""
    for name, r, g, b, chosen, length, run, single, end in re.findall(
        r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])", rest
    ):
        if name:
            colours[name] = [int(r), int(g), int(b)]
        elif end:
            x, y = 0, y + 6 * (end == "-")
        elif chosen:
            colour = chosen
        else:
            count, bits = int(length or 1), ord(run or single) - 63
            for bit in range(6):
                if bits >> bit & 1:
                    pixels[y + bit, x : x + count] = colours[colour]
            x += count
    assert (pixels[: int(height)] >= 0).all()
    assert (pixels[int(height) :] < 0).all()
    return pixels[: int(height)]


def _noise(path: Path, seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).integers(0, 255, (COLUMNS, COLUMNS, 3), np.uint8)
    Image.fromarray(noise).resize((160, 120)).save(path)
    return path


@pytest.mark.parametrize("colour", ["noise", "red"])
def test_a_part_of_an_image_is_decoded_to_its_pixels(tmp_path: Path, colour: str) -> None:
    image = Image.new("RGB", (160, 120), "red") if colour == "red" else Image.open(_noise(tmp_path / "a.png"))
    prepared = quantised(image.convert("RGB"), 16, 6, CELL)
    want = (prepared.palette[prepared.indices].astype(int) * 100 + 127) // 255
    for top, left, bottom, right in ((0, 0, 6, 16), (1, 3, 2, 4), (2, 0, 5, 15)):
        body = encoded(prepared, (top, left, bottom, right)).removeprefix("\x1bP0;1q").removesuffix("\x1b\\")
        part = want[top * CELL[1] : bottom * CELL[1], left * CELL[0] : right * CELL[0]]
        assert np.array_equal(decoded(body), part)


@settings(max_examples=100, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7))))
def test_rectangles_cover_every_cell_once(cells: set[tuple[int, int]]) -> None:
    covered = [
        (y, x) for top, left, bottom, right in rectangles(cells) for y in range(top, bottom) for x in range(left, right)
    ]
    assert sorted(covered) == sorted(cells)


async def _screen(tmp_path: Path, say: list[str]) -> tuple[Shown, SixelTerminal, Sixel, list[Strip]]:
    shown, terminal = Shown(), SixelTerminal()
    shown.last_row = ROWS - 1
    shown.pixels = sixel = Sixel(lambda number: terminal.feed(shown.repaint(number)), say.append)
    return shown, terminal, sixel, await sixel.strips(_noise(tmp_path / "a.png"), 16, 6)


def _draw(shown: Shown, terminal: SixelTerminal, lines: Iterable[tuple[int, int, Strip]]) -> str:
    stream = shown.changes(lines, CONSOLE)
    terminal.feed(stream)
    return stream


async def test_covered_scrolled_and_uncovered_the_screen_shows_the_right_pixels(tmp_path: Path) -> None:
    shown, terminal, _, strips = await _screen(tmp_path, [])
    _draw(shown, terminal, [(y, 2, strip) for y, strip in enumerate(strips)])
    whole = terminal.pixels.copy()
    assert (whole[: 6 * CELL[1], 2 * CELL[0] : 18 * CELL[0]] >= 0).all()
    assert (whole[6 * CELL[1] :] < 0).all()
    _draw(shown, terminal, [(y, 5, Strip([Segment("dialog")])) for y in (1, 2)])
    hole = terminal.pixels[CELL[1] : 3 * CELL[1], 5 * CELL[0] : 11 * CELL[0]]
    assert (hole < 0).all()
    stream = _draw(shown, terminal, [(y, 2, strips[y]) for y in range(6)])
    assert np.array_equal(terminal.pixels, whole)
    assert stream.count("\x1bP") == 1  # only what was covered
    blank = Strip([Segment(" " * 16)])
    _draw(shown, terminal, [(y, 2, strips[y + 2] if y < 4 else blank) for y in range(6)])
    assert np.array_equal(terminal.pixels[: 4 * CELL[1]], whole[2 * CELL[1] : 6 * CELL[1]])
    assert (terminal.pixels[4 * CELL[1] :] < 0).all()
    assert _draw(shown, terminal, [(0, 2, strips[2])]) == ""


async def test_nothing_is_drawn_on_the_last_row_where_it_could_scroll_the_screen(tmp_path: Path) -> None:
    shown, terminal, _, strips = await _screen(tmp_path, [])
    assert "\x1bP" not in _draw(shown, terminal, [(ROWS - 1, 0, strips[0])])


async def test_in_tmux_a_text_over_an_image_draws_the_rest_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMUX", "x")
    shown, terminal, _, strips = await _screen(tmp_path, [])
    _draw(shown, terminal, [(y, 2, strip) for y, strip in enumerate(strips)])
    whole = terminal.pixels.copy()
    assert (whole >= 0).any()
    terminal.pixels[:] = -1  # tmux forgets an image of which a cell was written over
    _draw(shown, terminal, [(0, 2, Strip([Segment("x")]))])
    whole[: CELL[1], 2 * CELL[0] : 3 * CELL[0]] = -1
    assert np.array_equal(terminal.pixels, whole)


async def test_an_image_that_was_dropped_or_has_another_cell_size_is_read_again_and_a_lost_one_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    shown, terminal, sixel, strips = await _screen(tmp_path, said)
    lines = [(y, 2, strip) for y, strip in enumerate(strips)]
    _draw(shown, terminal, lines)
    whole = terminal.pixels.copy()
    assert (whole >= 0).any()
    monkeypatch.setattr(module, "cell_size", lambda: (5, 12))
    terminal.cell = 5, 12
    shown.forget()
    assert "\x1bP" not in _draw(shown, terminal, lines)
    await asyncio.gather(*sixel._tasks.values())
    assert (terminal.pixels[: 6 * 12, 2 * 5 : 18 * 5] >= 0).all()
    monkeypatch.undo()
    terminal.cell = CELL
    terminal.pixels[:] = -1
    shown.forget()
    _draw(shown, terminal, lines)
    assert (terminal.pixels < 0).all()
    await asyncio.gather(*sixel._tasks.values())
    assert np.array_equal(terminal.pixels, whole)
    (tmp_path / "a.png").unlink()
    sixel._prepared.clear()
    sixel._encoded.clear()
    for _ in range(2):
        shown.forget()
        _draw(shown, terminal, lines)
        await asyncio.gather(*sixel._tasks.values())
    assert len(said) == 1
    assert "a.png" in said[0]


def test_the_choice_is_kept(tmp_path: Path) -> None:
    kept = Settings.load(tmp_path / "settings.json")
    kept.images = Way.SIXEL
    kept.save()
    assert Settings.load(tmp_path / "settings.json").images is Way.SIXEL
