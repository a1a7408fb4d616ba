"""Kitty's graphics: what is sent is the image, the screen has its placeholders, and nothing stays behind."""

import asyncio
import re
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.segment import Segment
from textual.color import Color
from textual.renderables.background_screen import BackgroundScreen
from textual.strip import Strip

from clip_tui.images import CELL, Tmux, Way, choose, fitted
from clip_tui.output import Shown
from clip_tui.pixels import DIACRITICS, PLACEHOLDER
from clip_tui.widgets import kitty as module
from clip_tui.widgets.kitty import KEPT, Kitty
from tests.tui.test_output import CONSOLE


def _image(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    return path


async def test_what_is_sent_is_the_image_and_the_cells_are_its_placeholders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TMUX", raising=False)
    file, sent = _image(tmp_path / "a.png"), list[str]()
    kitty = Kitty(sent.append)
    strips = await kitty.strips(file, 20, 10)
    await kitty.strips(file, 20, 10)
    (stream,) = sent  # the second time it is known
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", stream)
    assert all(len(data) <= 4096 for _, data in chunks)
    assert [head[-3:] for head, _ in chunks] == ["m=1"] * (len(chunks) - 1) + ["m=0"]
    head = dict(part.split("=") for part in chunks[0][0].split(","))
    pixels = zlib.decompress(b64decode("".join(data for _, data in chunks)))
    image, across, down = fitted(file, 20, 10, CELL)
    assert (pixels, head["s"], head["v"]) == (image.tobytes(), str(image.width), str(image.height))
    assert (head["c"], head["r"], across, down) == ("20", "10", 20, 10)
    number = int(head["i"])
    assert _terminal_cells(kitty, strips) == {
        (y, x): (number, PLACEHOLDER + DIACRITICS[y] + DIACRITICS[x]) for y in range(10) for x in range(20)
    }
    kitty.close()
    assert sent[1:] == [f"\x1b_Ga=d,d=I,i={number},q=2\x1b\\"]


def _terminal_cells(kitty: Kitty, strips: list[Strip]) -> dict[tuple[int, int], tuple[int, str]]:
    """What a terminal gets for these lines, by row and column: the number in the colour, and the characters."""
    shown = Shown()
    shown.pixels = kitty
    stream = shown.changes([(y, 0, strip) for y, strip in enumerate(strips)], CONSOLE)
    found, name = {}, 0
    y = x = 0
    for row, red, green, blue, cell in re.findall(
        rf"\x1b\[(\d+);1H|\x1b\[38;2;(\d+);(\d+);(\d+)m|({PLACEHOLDER}..)", stream
    ):
        if row:
            y, x = int(row) - 1, 0
        elif cell:
            found[y, x] = name, cell
            x += 1
        else:
            name = int(red) << 16 | int(green) << 8 | int(blue)
    return found


async def test_a_dialog_over_it_and_joined_cells_change_nothing(tmp_path: Path) -> None:
    kitty = Kitty(lambda _: None)
    strips = await kitty.strips(_image(tmp_path / "a.png"), 20, 10)
    dimmed = [
        Strip(BackgroundScreen.process_segments(strip, Color.parse("#102030").with_alpha(0.6))) for strip in strips
    ]
    assert _terminal_cells(kitty, dimmed) == _terminal_cells(kitty, strips)
    assert _terminal_cells(kitty, [strip.simplify() for strip in dimmed]) == _terminal_cells(kitty, strips)


async def test_a_dropped_image_is_sent_again_when_its_cells_are_shown_and_a_visible_one_is_never_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 2 * 4 * 200 * 200)
    file, sent, shown = _image(tmp_path / "a.png"), list[str](), Shown()
    shown.pixels = kitty = Kitty(sent.append, visible=shown.visible)
    first = await kitty.strips(file, 20, 10)
    shown.changes([(0, 0, first[0])], CONSOLE)
    for width in (21, 22, 23):  # larger places for the same 200 x 200 pixels
        await kitty.strips(file, width, 10)
    names = re.findall(r"a=T,U=1.*?,i=(\d+),", "".join(sent))
    assert re.findall(r"a=d,d=I,i=(\d+)", "".join(sent)) == names[1:3]
    second = await kitty.strips(file, 21, 10)
    sent.clear()
    shown.changes([(3, 0, second[4])], CONSOLE)  # of which the first line is not shown
    await asyncio.gather(*kitty._tasks.values())
    assert re.findall(r"a=T,U=1.*?,i=(\d+),", "".join(sent)) == [names[1]]


def test_cells_from_a_file_are_no_image() -> None:
    shown = Shown()
    shown.pixels = Kitty(lambda _: None)
    hostile = PLACEHOLDER + DIACRITICS[0] * 2 + "a" + PLACEHOLDER + DIACRITICS[0] * 4
    assert PLACEHOLDER not in shown.changes([(0, 0, Strip([Segment(hostile)]))], CONSOLE)


async def test_old_images_are_deleted_and_tmux_gets_an_envelope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMUX", "x")
    file, sent = _image(tmp_path / "a.png"), list[str]()
    kitty = Kitty(sent.append)
    for number in range(KEPT + 1):
        await kitty.strips(file, 1 + number, 1)
    assert "".join(sent).count("a=d,d=I,i=") == 1
    assert sent[-1].startswith("\x1bPtmux;\x1b\x1b_Ga=d,d=I,i=")
    assert sent[-1].endswith("\x1b\x1b\\\x1b\\")


@pytest.mark.parametrize("way", [Way.KITTY, Way.SIXEL])
@pytest.mark.parametrize(
    ("name", "value"), [("ascii_only", True), ("no_color", True), ("web", True), ("tmux", Tmux(False, False))]
)
def test_where_pixels_are_impossible_the_option_is_ignored_in_one_line(way: Way, name: str, value: object) -> None:
    flags = {
        "ascii_only": False,
        "no_color": False,
        "true_colour": True,
        "web": False,
        "tmux": None,
        "cell_known": True,
    }
    assert choose(way, **flags) == (way, "")
    chosen, reason = choose(way, **flags | {name: value})
    assert chosen is Way.HALFBLOCKS
    assert reason.startswith(f"--images {way} is ignored: ")
