"""What every screen shares: hostile texts, sizes, ASCII, NO_COLOR, tabs."""

import unicodedata
from pathlib import Path

import pytest
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Input

from clip_tui.actions import TABS
from clip_tui.app import ClipApp
from clip_tui.screens.dialogs import Choice, Chooser, Prompt
from tests.tui.conftest import SIZES
from tests.tui.pilot import at_rest, opened, says, screen_text, until

PAGES = [tab.page for tab in TABS]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", PAGES)
async def test_hostile_texts_are_shown_as_they_are_and_never_interpreted(
    runs: Path, page: str, size: tuple[int, int]
) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, runs / "hostile", page)
        if page not in ("runs", "retrieve", "export"):
            await says(pilot, "[red]n")
        shown = await at_rest(pilot)
        assert not [sign for sign in shown if unicodedata.category(sign) in ("Cc", "Cs") and sign != "\n"]
        assert not set(shown) & set("\u202e\u2066\x1b\x07\x9b")


@pytest.mark.parametrize("size", [(59, 24), (80, 14), (20, 5)])
async def test_below_60_by_15_the_screen_says_that_it_is_too_small(runs: Path, size: tuple[int, int]) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=size) as pilot:
        await says(pilot, "too small")
        await pilot.resize_terminal(80, 24)
        await says(pilot, "hostile")
        assert "too small" not in screen_text(app)


@pytest.mark.parametrize("page", PAGES)
async def test_with_ascii_nothing_but_ascii_is_drawn(runs: Path, page: str) -> None:
    app = ClipApp(runs, ascii_only=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "hostile", page)
        await at_rest(pilot)
        written = app.screen._compositor.render_update(full=True)
        console = app.console
        assert "".join(segment.text for segment in console.render(written)).isascii()


async def test_with_no_color_nothing_is_coloured(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "live")
        await at_rest(pilot)
        styles = [segment.style for segment in app.console.render(app.screen._compositor.render_update(full=True))]
        colours = [colour for style in styles if style for colour in (style.color, style.bgcolor) if colour]
        assert all(colour.is_default for colour in colours)


async def test_with_no_color_the_chosen_entry_of_a_list_still_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = ClipApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        app.push_screen(Chooser("Of two", [Choice(1, "first"), Choice(2, "second")], 2))
        await says(pilot, "second")
        await pilot.pause()
        styles = {part.text: part.style for strip in app.screen._compositor.render_strips() for part in strip}
        first, second = styles["first"], styles["second"]
        assert second is not None
        assert first != second


@pytest.mark.parametrize("page", PAGES[1:])
async def test_the_tabs_lead_everywhere_by_their_key_also_out_of_a_field(runs: Path, page: str) -> None:
    app = ClipApp(runs)
    number = PAGES.index(page) + 1
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "retrieve")
        await pilot.press("slash", f"f{number}")
        await until(pilot, lambda: getattr(app.screen, "PAGE", "") == page)


@pytest.mark.parametrize("dialog", [Prompt("Name"), Chooser("Which", [Choice(1, "name")])])
async def test_keys_that_come_before_a_dialog_has_a_focus_are_typed_into_it(
    runs: Path, dialog: ModalScreen[object]
) -> None:
    app = ClipApp(runs)
    async with app.run_test() as pilot:
        app.push_screen(dialog)
        for letter in "name":
            await app.on_event(Key(letter, letter))
        await until(pilot, lambda: bool(dialog.query(Input)) and dialog.query_one(Input).value == "name")
