"""The Retrieve screen."""

from pathlib import Path

from textual.pilot import Pilot
from textual.widgets import Input

from clip_tui.app import ClipApp
from clip_tui.screens.retrieve import RetrieveScreen
from clip_tui.widgets.bars import Bars
from tests.tui.pilot import opened, says, screen_text, until
from tests.tui.samples import FixedEncoders


async def _retrieve(pilot: Pilot[None], run: Path) -> RetrieveScreen:
    app = await opened(pilot, run, "retrieve")
    app.encoders = FixedEncoders(Path("logs"))
    screen = pilot.app.screen
    assert isinstance(screen, RetrieveScreen)
    await until(pilot, lambda: bool(screen.gallery.images))
    return screen


async def test_the_field_says_what_a_query_is_in_each_direction(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await _retrieve(pilot, runs / "live")
        await says(pilot, "text to match against 6 images")
        await pilot.press("t")
        await says(pilot, "path of an image to match against 6 captions")


async def test_a_true_match_is_marked(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await pilot.press("slash", *"A blue square", "enter")
        await says(pilot, "1. 0.900  red.png")
        await says(pilot, "2. 0.800 ✓  blue.png")
        assert screen.query_sent is not None
        assert screen.query_sent["images"] == list(screen.gallery.images)


async def test_an_image_is_given_by_its_file_name_and_its_captions_are_ranked(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await pilot.press("t", "slash", *"blue.png", "enter")
        assert screen.query_sent is not None
        assert screen.query_sent["image"] == screen.gallery.images[1]
        found = screen.query_one("#found-texts", Bars)
        await until(pilot, lambda: bool(found.bars))
        assert [bar.name for bar in found.bars if bar.right] == ["a blue square"]


async def test_a_random_query_is_a_caption_or_an_image_of_the_validation_set(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await pilot.press("x")
        assert screen.query_one("#query", Input).value in screen.gallery.captions
        await pilot.press("t", "x")
        assert screen.query_sent is not None
        assert screen.query_sent["image"] in screen.gallery.images


async def test_changing_the_direction_drops_the_query(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await pilot.press("x", "t")
        assert screen.query_sent is None
        await says(pilot, "your own query")
        assert "Traceback" not in screen_text(app)
