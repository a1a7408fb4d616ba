"""Images as pixels in a real terminal: they are sent, their cells are on the screen, and all are deleted at the end."""

import re
import time
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
