"""The widget of an image: decoding in a thread, and what it says where there is no image."""

from pathlib import Path

import pytest
from PIL import Image
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from clip_tui.widgets.halfblocks import RAMP, UPPER_HALF
from clip_tui.widgets.image_view import ImageView


class ImageApp(App[None]):
    def compose(self) -> ComposeResult:
        yield ImageView()


async def _drawn(pilot: Pilot[None], width: int = 40, height: int = 10) -> str:
    view = pilot.app.query_one(ImageView)
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    return "\n".join(view.render_line(y).text for y in range(height))


async def test_an_image_is_drawn_and_another_one_takes_its_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (8 if name == "a" else 80, 8), "red").save(tmp_path / f"{name}.png")
    app = ImageApp()
    async with app.run_test(size=(40, 10)) as pilot:
        view = app.query_one(ImageView)
        view.show(tmp_path / "a.png")
        first = await _drawn(pilot)
        view.show(tmp_path / "b.png")
        second = await _drawn(pilot)
        assert first.splitlines()[0].count(UPPER_HALF) == 20
        assert second.splitlines()[0].count(UPPER_HALF) == 40
        view.show(None)
        assert (await _drawn(pilot)).strip() == ""


async def test_a_file_that_is_no_image_shows_its_error(tmp_path: Path) -> None:
    (tmp_path / "no\x1b[2J.png").write_text("not an image")
    app = ImageApp()
    async with app.run_test(size=(80, 10)) as pilot:
        app.query_one(ImageView).show(tmp_path / "no\x1b[2J.png")
        shown = await _drawn(pilot, 80)
        assert ".png" in shown.replace("\n", "")
        assert "\x1b" not in shown


async def test_without_colour_an_image_is_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    app = ImageApp()
    async with app.run_test(size=(40, 10)) as pilot:
        app.query_one(ImageView).show(tmp_path / "white.png")
        assert set(await _drawn(pilot)) <= {*RAMP, "\n"}
