"""Each screen at both sizes, over directories that the real writer wrote."""

import unicodedata
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList

from clip_core.run.reader import RunReader
from clip_core.run.writer import RunWriter
from clip_tui.actions import ACTIONS, APP, TABS, Action
from clip_tui.app import ClipApp
from clip_tui.screens.live import LiveScreen
from clip_tui.screens.new_run import NewRunScreen
from clip_tui.screens.query_page import agreement
from clip_tui.screens.retrieve import RetrieveScreen
from clip_tui.widgets.image_view import ImageView
from clip_tui.widgets.plot import Plot
from tests.tui.conftest import HOSTILE, SIZES, make_run
from tests.tui.pilot import opened, says, screen_text, until

PAGES = [tab.page for tab in TABS]


@pytest.mark.parametrize("size", SIZES)
async def test_the_list_shows_every_run_with_its_state_step_and_recall(runs: Path, size: tuple[int, int]) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=size) as pilot:
        for words in ("live", "older", "hostile", "● running", "✓ finished", "40 / 100", "66.7 %"):
            await says(pilot, words)


async def test_an_empty_directory_says_how_to_begin(tmp_path: Path) -> None:
    app = ClipApp(tmp_path / "nowhere")
    async with app.run_test(size=(80, 24)) as pilot:
        await says(pilot, "No runs yet")
        await says(pilot, "clip-tui demo")


@pytest.mark.parametrize("size", SIZES)
async def test_enter_attaches_to_the_chosen_run_and_shows_it_live(runs: Path, size: tuple[int, int]) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=size) as pilot:
        await says(pilot, "40 / 100")
        await pilot.press("enter")
        await says(pilot, "recall@1")
        for words in ("Loss", "train", "held out", "step 40", "red.png", "0.90✓", "p Pause", "s Stop"):
            await says(pilot, words)


async def test_new_lines_of_the_trainer_reach_the_screen(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "live")
        writer = RunWriter(runs / "live")
        writer.metric("train", 77, loss=0.123)
        writer.status(step=77, steps=100)
        await says(pilot, "step 77 / 100")
        await says(pilot, "0.1230")
        writer.close()


async def test_a_spike_of_one_step_stays_visible_in_the_curve(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "live")
        await says(pilot, "Loss")
        await until(pilot, lambda: bool(app.screen.query_one("#plot-0", Plot).chart.lines))
        top = app.screen.query_one("#plot-0", Plot).render().plain.splitlines()[1]
        assert any("\u2800" < sign <= "\u28ff" for sign in top)


@pytest.mark.parametrize(
    ("key", "request_made"), [("p", "pause"), ("c", "checkpoint"), ("v", "evaluate"), ("s", "stop")]
)
async def test_a_key_leaves_the_request_that_the_trainer_reads(runs: Path, key: str, request_made: str) -> None:
    app = ClipApp(runs)
    writer = RunWriter(runs / "live")
    writer.status(state=RunReader(runs / "live").state(), step=40, steps=100)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "live")
        await says(pilot, "p Pause")
        await pilot.press(key)
        await until(pilot, lambda: (runs / "live" / "control.json").exists())
        assert writer.request() == request_made
    writer.close()


async def test_a_finished_run_offers_neither_pause_nor_stop(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "older", "live")
        await says(pilot, "✓ finished")
        await pilot.press("p", "s")
        assert "Pause" not in screen_text(app)
        assert not (runs / "older" / "control.json").exists()


@pytest.mark.parametrize("size", SIZES)
async def test_the_data_screen_shows_pairs_and_searches_them(runs: Path, size: tuple[int, int]) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, runs / "live", "data")
        await says(pilot, "held out 6")
        await pilot.press("slash", *"yel")
        await says(pilot, "held out 1 of 6")
        assert app.screen.query_one("#captions", OptionList).option_count == 1
        await until(pilot, lambda: bool(app.screen.query_one("#image", ImageView)._strips))


@pytest.mark.parametrize("size", SIZES)
async def test_logs_show_what_the_trainer_printed_and_the_system(runs: Path, size: tuple[int, int]) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, runs / "live", "logs")
        await says(pilot, "step 59")
        await says(pilot, "torch")
        with (runs / "live" / "train.log").open("a") as log:
            log.write("one more line\n")
        await says(pilot, "one more line")


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
        await pilot.pause(0.3)
        shown = screen_text(app)
        assert not [sign for sign in shown if unicodedata.category(sign) in ("Cc", "Cs") and sign != "\n"]
        assert not set(shown) & set("\u202e\u2066\x1b\x07\x9b")


async def test_hostile_metric_names_are_drawn_like_any_other(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "hostile", "live")
        for _ in range(4):
            if "[red]odd[2J" in screen_text(app):
                break
            await pilot.press("m")
            await pilot.pause(0.2)
        assert "[red]odd[2J" in screen_text(app)


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
        await pilot.pause(0.5)
        written = app.screen._compositor.render_update(full=True)
        console = app.console
        assert "".join(segment.text for segment in console.render(written)).isascii()


async def test_with_no_color_nothing_is_coloured(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "live")
        await pilot.pause(0.5)
        styles = [segment.style for segment in app.console.render(app.screen._compositor.render_update(full=True))]
        colours = [colour for style in styles if style for colour in (style.color, style.bgcolor) if colour]
        assert all(colour.is_default for colour in colours)


async def test_every_action_stands_in_the_palette_and_in_the_help(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "live")
        offered = {command.help for command in app.get_system_commands(app.screen)}
        wanted = [action for action in ACTIONS if action.scope in ("live", APP) and action.name != "command_palette"]
        assert {action.help for action in wanted} <= offered
        await pilot.press("question_mark")
        await says(pilot, "Help")
        assert all(action.help in screen_text(app) for action in ACTIONS if action.scope in (APP, "runs", "live"))
        await pilot.press("escape")
        assert isinstance(app.screen, LiveScreen)


@pytest.mark.parametrize("action", [action for action in ACTIONS if not action.name.startswith("app.")])
def test_every_action_of_the_table_has_a_method(action: Action) -> None:
    owners = {APP: ClipApp, "new": NewRunScreen}
    owner = owners.get(action.scope) or type(ClipApp.SCREENS[action.scope]())
    assert hasattr(owner, "action_" + action.name.partition("(")[0])


@pytest.mark.parametrize("page", PAGES[1:])
async def test_the_tabs_lead_everywhere_by_their_key_also_out_of_a_field(runs: Path, page: str) -> None:
    app = ClipApp(runs)
    number = PAGES.index(page) + 1
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "retrieve")
        await pilot.press("slash", f"f{number}")
        await until(pilot, lambda: getattr(app.screen, "PAGE", "") == page)


async def test_an_image_is_asked_for_by_its_file_name_and_texts_by_typing(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "classify")
        await until(pilot, lambda: "a red square" in app.screen.query_one("#classes", Input).value)
        await pilot.press("n")
        await until(pilot, lambda: "blue.png" in app.screen.query_one("#image", Input).value)


async def test_a_run_without_a_checkpoint_gives_one_sentence_instead_of_an_answer(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "retrieve")
        screen = app.screen
        assert isinstance(screen, RetrieveScreen)
        await until(pilot, lambda: bool(screen.gallery.images))
        await pilot.press("x")
        await until(pilot, lambda: bool(screen.query(".source.problem")))
        assert "Traceback" not in screen_text(app)


def test_two_backends_that_say_the_same_are_said_to_agree() -> None:
    first = {"images": ["a", "b"], "similarities": [0.5, 0.25]}
    second = {"images": ["a", "b"], "similarities": [0.5, 0.250001]}
    assert agreement(first, second) == "same order, max |Δ| 1e-06"
    assert agreement(first, {"images": ["b", "a"], "similarities": [0.5, 0.4]}).startswith("other order")


def test_hostile_captions_stay_different_after_they_are_made_printable(tmp_path: Path) -> None:
    assert len(set(HOSTILE)) == len(HOSTILE)
    assert make_run(tmp_path / "run", hostile=True).is_dir()
