"""The Classify screen."""

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from clip_tui.app import ClipApp
from clip_tui.screens.classify import ClassifyScreen, split
from clip_tui.widgets.bars import Bars
from tests.tui.pilot import opened, says, until
from tests.tui.samples import FixedEncoders


async def _classify(pilot: Pilot[None], run: Path) -> ClassifyScreen:
    app = await opened(pilot, run, "classify")
    app.encoders = FixedEncoders(Path("logs"))
    screen = pilot.app.screen
    assert isinstance(screen, ClassifyScreen)
    await until(pilot, lambda: "a red square" in screen.query_one("#classes", Input).value)
    return screen


async def test_next_and_previous_go_through_the_validation_images(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _classify(pilot, runs / "live")
        image = screen.query_one("#image", Input)
        for key, name in (("n", "blue.png"), ("p", "red.png"), ("p", "orange.png")):
            await pilot.press(key)
            assert Path(image.value).name == name
            assert screen.query_sent is not None
            assert Path(screen.query_sent["image"]).name == name


async def test_the_probabilities_are_ranked_with_the_true_class_marked(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _classify(pilot, runs / "live")
        await pilot.press("n")
        ranked = screen.query_one("#probabilities", Bars)
        await until(pilot, lambda: bool(ranked.bars))
        assert [bar.value for bar in ranked.bars[:2]] == ["90.0%", "80.0%"]
        assert [bar.name for bar in ranked.bars if bar.right] == ["a blue square"]


@pytest.mark.parametrize(
    ("field", "typed", "words"),
    [
        ("classes", "one", "at least two classes"),
        ("image", "", "at least two classes"),
        ("templates", "a photo", "needs a {}"),
    ],
)
async def test_what_is_missing_is_said_instead_of_asked(runs: Path, field: str, typed: str, words: str) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        screen = await _classify(pilot, runs / "live")
        screen.query_one(f"#{field}", Input).value = typed
        screen.classify()
        await says(pilot, words)
        assert screen.query_sent is None


def test_parts_are_distinct_and_not_empty() -> None:
    assert split(" cat, dog,,cat ,a  red circle", ",") == ["cat", "dog", "a  red circle"]
