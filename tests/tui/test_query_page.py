"""What Retrieve and Classify share: backends, their errors, and a bundle older than the best checkpoint."""

import threading
from pathlib import Path

import pytest

from clip_core.data.progress import Progress
from clip_tui.app import ClipApp
from clip_tui.gallery import Gallery, Place, read_gallery
from clip_tui.screens.query_page import QueryPage, agreement
from tests.tui.conftest import BEST_STEP, SIZES
from tests.tui.pilot import opened, says, screen_text, until
from tests.tui.samples import write_bundle


def test_backends_agree_in_order_and_by_their_largest_difference() -> None:
    first = {"images": ["a", "b"], "similarities": [0.5, 0.25]}
    assert agreement(first, {"images": ["a", "b"], "similarities": [0.5, 0.250001]}) == "same order, max |Δ| 1e-06"
    assert agreement(first, {"images": ["b", "a"], "similarities": [0.5, 0.4]}).startswith("different order")
    three = {"classes": ["a", "b", "c"], "probabilities": [0.5, 0.3, 0.2]}
    swapped = {"classes": ["a", "c", "b"], "probabilities": [0.5, 0.3, 0.2]}
    assert agreement(three, swapped) == "same first, max |Δ| 1e-01"
    assert agreement({}, {}) == "same order"


async def test_a_run_without_a_checkpoint_is_one_sentence(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "retrieve")
        screen = app.screen
        assert isinstance(screen, QueryPage)
        await until(pilot, lambda: bool(screen.gallery.images))
        await pilot.press("x")
        await until(pilot, lambda: bool(screen.query(".source.problem")))
        assert "Traceback" not in screen_text(app)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", ["retrieve", "classify"])
async def test_a_bundle_older_than_the_best_checkpoint_says_both_steps(
    runs: Path, page: str, size: tuple[int, int]
) -> None:
    write_bundle(runs / "live", step=20)
    app = ClipApp(runs)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, runs / "live", page)
        await until(pilot, lambda: f"bundle of step 20, best checkpoint is step {BEST_STEP}" in _words(app))
        await opened(pilot, runs / "older", page)
        await until(pilot, lambda: "bundle of step" not in _words(app))


async def test_another_run_brings_its_own_gallery(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "retrieve")
        screen = app.screen
        assert isinstance(screen, QueryPage)
        await until(pilot, lambda: "a red square" in screen.gallery.captions)
        await opened(pilot, runs / "hostile", "retrieve")
        await until(pilot, lambda: bool(screen.gallery.images) and "a red square" not in screen.gallery.captions)
        assert screen.query_sent is None


async def test_b_switches_the_backend(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "retrieve")
        await says(pilot, "● torch")
        await pilot.press("b")
        await says(pilot, "● onnx")
        await says(pilot, "○ torch")


def _words(app: ClipApp) -> str:
    return " ".join(screen_text(app).split())


async def test_a_gallery_that_is_being_read_says_so_with_its_progress(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slowly(run: Path, place: Place | None, progress: Progress) -> Gallery:
        progress(1, 4)
        go_on.wait(20)
        return read_gallery(run, place, progress)

    monkeypatch.setattr("clip_tui.screens.query_page.read_gallery", slowly)
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await pilot.pause()
        app.open_run(runs / "live", "retrieve")
        await says(pilot, "reading the validation set, 25%")
        assert "0 images" not in screen_text(app)
        await pilot.press("slash", *"red", "enter")
        await says(pilot, "Still reading")
        go_on.set()
        await until(pilot, lambda: "reading the" not in screen_text(app).partition("Still")[0])
        assert app.screen.gallery.images  # type: ignore[attr-defined]
