"""Images as pixels in a real terminal: they are sent, their cells are on the screen, and all are deleted at the end."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from tests.terminal.terminal import Terminal
from tests.tui.conftest import make_run


def test_images_are_sent_shown_and_deleted_at_the_end(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a")
    with Terminal("clip_tui.cli", "runs", "--images", "kitty", cwd=tmp_path, size=(160, 50)) as terminal:
        terminal.wait_for("a")
        terminal.press("enter")
        terminal.wait_for("Validation")
        terminal.press("3")
        terminal.wait_for("validation 6")
        deadline = time.monotonic() + 20
        while "\U0010eeee".encode() not in terminal.received and time.monotonic() < deadline:
            terminal.read()
        terminal.press("q")
        assert terminal.wait() == 0
        for _ in range(3):
            terminal.read()
    sent = set(re.findall(rb"\x1b_Ga=T,U=1,q=2,[^;]*?,i=(\d+),", terminal.received))
    deleted = set(re.findall(rb"\x1b_Ga=d,d=I,i=(\d+),q=2\x1b", terminal.received))
    assert sent
    assert sent == deleted
    drawn = {
        str(int(red) << 16 | int(green) << 8 | int(blue)).encode()
        for red, green, blue in re.findall(rb"38;2;(\d+);(\d+);(\d+)(?:;[\d;]*)?m\xf4\x8e\xbb\xae", terminal.received)
    }
    assert drawn
    assert drawn <= sent
    assert "kitty" in (tmp_path / "settings" / "clip-tui" / "settings.json").read_text()


def test_sixel_images_are_drawn_in_place_and_the_dialog_over_one_has_its_cells(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a")
    arguments = ("runs/a", "--images", "sixel")
    with Terminal("clip_tui.cli", *arguments, cwd=tmp_path, size=(160, 50), cell=(10, 20)) as terminal:
        terminal.wait_for("Validation")
        terminal.press("3")
        terminal.wait_for("validation 6")
        _read_until(terminal, lambda: len(_drawn(terminal)) > 0)
        terminal.press("enter")
        terminal.wait_for("esc closes")
        before = len(_drawn(terminal))
        terminal.press("escape")
        _read_until(terminal, lambda: len(_drawn(terminal)) > before)
        terminal.press("q")
        assert terminal.wait() == 0
    for row, column, width, height in _drawn(terminal):
        assert row - 1 + height // 20 <= 49
        assert column - 1 + width // 10 <= 160
        assert (width % 10, height % 20) == (0, 0)


def test_sixel_without_a_cell_size_is_half_blocks_and_said(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a")
    with Terminal("clip_tui.cli", "runs", "--images", "sixel", cwd=tmp_path, size=(160, 50)) as terminal:
        terminal.wait_for("--images sixel is ignored")
        terminal.press("q")
        assert terminal.wait() == 0


def _drawn(terminal: Terminal) -> list[tuple[int, int, int, int]]:
    """Row, column, width and height of the Sixel sequences so far."""
    found = re.findall(rb'\x1b\[(\d+);(\d+)H\x1bP0;1q"1;1;(\d+);(\d+)#[^\x1b]+\x1b\\', terminal.received)
    return [tuple(map(int, each)) for each in found]  # type: ignore[misc]


def _read_until(terminal: Terminal, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        terminal.read()
