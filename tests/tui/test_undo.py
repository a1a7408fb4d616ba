"""Ctrl-Z takes back the last change of the screen in front."""

import time
from pathlib import Path

import pytest
from textual.widgets import DataTable, Input

from clip_core.run.paths import RunPaths
from clip_core.run.records import Flags
from clip_tui import undo
from clip_tui.app import ClipApp
from clip_tui.gallery import Place
from clip_tui.screens.classify import ClassifyScreen
from clip_tui.screens.retrieve import RetrieveScreen
from tests.tui.pilot import opened, says, screen_text, until
from tests.tui.samples import FixedEncoders


async def test_what_was_typed_into_a_form_and_a_form_that_was_discarded_come_back(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await says(pilot, "live")
        await pilot.press("n", *"data", "tab", "space", "ctrl+z", "shift+tab")
        field = app.screen.query_one("#data-data_file", Input)
        assert "● on" not in screen_text(app)
        await pilot.press("ctrl+z")
        assert field.value == ""
        await pilot.press("ctrl+z")
        await says(pilot, "nothing to undo")
        await pilot.press(*"pairs.csv", "escape", "d")
        await until(pilot, lambda: app.screen.PAGE == "runs")
        assert not app.settings.draft
        await pilot.press("ctrl+z")
        await says(pilot, "pairs.csv")


async def test_filter_and_marks_that_were_taken_away_come_back(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        table = app.screen.query_one("#runs", DataTable)
        await until(pilot, lambda: table.row_count == 3)
        await pilot.press("space", "slash", *"nothing such", "escape", "escape")
        await until(pilot, lambda: table.row_count == 3)
        await pilot.press("escape")
        await until(pilot, lambda: "■" not in screen_text(app))
        await pilot.press("ctrl+z")
        await says(pilot, "■")
        await pilot.press("ctrl+z")
        await until(pilot, lambda: table.row_count == 0)
        await says(pilot, "nothing such")


async def test_a_flag_is_taken_back(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "live")
        await says(pilot, "◆")
        await pilot.press("f")
        await says(pilot, "✗ bad")
        await pilot.press("ctrl+z")
        await until(pilot, lambda: "✗ bad" not in screen_text(app))
        assert Flags.read(RunPaths(runs / "live").flags).pairs == []


async def test_the_query_the_direction_and_the_gallery_before_come_back(runs: Path) -> None:
    app = ClipApp(runs)
    app.encoders = FixedEncoders()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "retrieve")
        screen = app.screen
        assert isinstance(screen, RetrieveScreen)
        field = screen.query_one("#query", Input)
        await until(pilot, lambda: bool(screen.gallery.images))
        await pilot.press("slash", *"red", "enter")
        await until(pilot, lambda: bool(screen.found))
        await pilot.press("slash", "end", *" and blue", "enter", "t")
        screen._use(Place("training"))
        await pilot.press("ctrl+z")
        assert screen.place == Place()
        await pilot.press("ctrl+z")
        assert (field.value, screen.from_text) == ("red and blue", True)
        await pilot.press("ctrl+z")
        assert field.value == "red"
        await until(pilot, lambda: bool(screen.found))


async def test_classes_that_were_typed_stay_with_another_gallery_and_are_taken_back_in_one_go(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = ClipApp(runs)
    app.encoders = FixedEncoders()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "classify")
        screen = app.screen
        assert isinstance(screen, ClassifyScreen)
        classes = screen.query_one("#classes", Input)
        await until(pilot, lambda: "a red square" in classes.value)
        offered = classes.value
        monkeypatch.setattr(undo, "PAUSE_SECONDS", 60.0)
        await pilot.press("slash", "end", *", pink")
        screen._use(Place("folder", runs / "images"))
        await until(pilot, lambda: bool(screen.gallery.images))
        await pilot.pause()
        assert classes.value == f"{offered}, pink"
        await pilot.press("ctrl+z", "ctrl+z")
        assert classes.value == offered


def test_typing_after_a_pause_is_another_change(monkeypatch: pytest.MonkeyPatch) -> None:
    assert undo._is_recent(undo.Change("runs", "", lambda: None))
    assert not undo._is_recent(undo.Change("runs", "", lambda: None, at=time.monotonic() - 2 * undo.PAUSE_SECONDS))
