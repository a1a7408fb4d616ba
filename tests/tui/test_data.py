"""The Data screen."""

from pathlib import Path

import pytest
from textual.widgets import OptionList

from clip_core.config import DataConfig
from clip_core.files import write_json
from clip_core.run.paths import RunPaths
from clip_core.run.records import DataFacts, ValidationPair, ValidationPairs
from clip_tui.app import ClipApp
from clip_tui.gallery import read_parts
from clip_tui.screens.data import counts
from clip_tui.widgets.image_view import ImageView
from tests.tui.conftest import SIZES
from tests.tui.pilot import opened, says, until


@pytest.mark.parametrize("size", SIZES)
async def test_validation_pairs_are_shown_and_searched(runs: Path, size: tuple[int, int]) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, runs / "live", "data")
        await says(pilot, "validation 6")
        await pilot.press("slash", *"yel")
        await says(pilot, "validation 1 of 6")
        await says(pilot, "yellow.png")
        assert app.screen.query_one("#captions", OptionList).option_count == 1
        await until(pilot, lambda: bool(app.screen.query_one("#image", ImageView)._strips))


async def test_t_switches_to_the_training_pairs_and_back(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "data")
        await says(pilot, "validation 6")
        await pilot.press("t")
        await says(pilot, "training 0")
        await pilot.press("t")
        await says(pilot, "validation 6")


async def test_a_search_without_a_match_shows_no_image(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "data")
        await says(pilot, "red.png")
        await pilot.press("slash", *"zebra")
        await says(pilot, "validation 0 of 6")
        assert app.screen.query_one("#image", ImageView).path is None


def test_pairs_whose_image_is_validated_on_are_not_training_pairs(tmp_path: Path) -> None:
    data, run = tmp_path / "pairs.json", tmp_path / "run"
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    names = [("a.png", "one"), ("a.png", "two"), ("b.png", "three")]
    write_json(data, [{"image": image, "caption": caption} for image, caption in names])
    run.mkdir()
    validated = ValidationPair(image=str(tmp_path / "a.png"), caption="one")
    ValidationPairs(pairs=[validated]).write(RunPaths(run).validation)
    parts = read_parts(run, DataConfig(data_file=data))
    assert parts.validation == [(str(tmp_path / "a.png"), "one")]
    assert parts.training == [(str(tmp_path / "b.png"), "three")]


def test_data_that_moved_leaves_the_validation_pairs(tmp_path: Path) -> None:
    ValidationPairs(pairs=[ValidationPair(image="a.png", caption="one")]).write(RunPaths(tmp_path).validation)
    parts = read_parts(tmp_path, DataConfig(data_file=tmp_path / "moved.json"))
    assert (list(parts.validation), list(parts.training)) == ([("a.png", "one")], [])
    assert parts.note is not None
    assert "moved.json" in parts.note


def test_pairs_and_images_are_counted_apart() -> None:
    data = DataFacts(train_pairs=3240, train_images=1620, val_pairs=360, val_images=180, classes=["a", "b"])
    facts = dict(fact for fact in counts(data, [("x", "one"), ("y", "One"), ("y", "two")]) if fact)
    assert facts["training"] == "3,240 pairs, 1,620 images"
    assert facts["validation"] == "360 pairs, 180 images"
    assert facts["classes"] == "2"
    assert facts["captions"].startswith("2 distinct")
