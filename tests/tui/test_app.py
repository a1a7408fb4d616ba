"""What works on every screen: jump mode, copy, themes, settings; and hostile texts in what was asked and found."""

import unicodedata
from pathlib import Path

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.widgets import DataTable, Input

from clip_core.run.paths import RunPaths
from clip_core.run.records import Label, State
from clip_core.run.writer import RunWriter
from clip_tui.app import ClipApp
from clip_tui.encoder import Model
from clip_tui.screens.classify import ClassifyScreen
from clip_tui.screens.dialogs import Chooser, fuzzy
from clip_tui.screens.jump import JumpScreen
from clip_tui.screens.retrieve import RetrieveScreen
from clip_tui.settings import Settings
from clip_tui.theme import COLOUR_BLIND, DARK, GREEN, LIGHT, RED, THEMES, recolour
from tests.tui.conftest import HOSTILE, make_run
from tests.tui.pilot import opened, says, screen_text, until
from tests.tui.samples import FixedEncoders


async def test_jump_mode_puts_a_letter_on_what_can_have_the_focus_and_a_number_changes_the_screen(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(100, 30)) as pilot:
        await opened(pilot, runs / "live", "classify")
        await pilot.press("slash", "ctrl+o")  # from a field that is typed into
        await until(pilot, lambda: isinstance(app.screen, JumpScreen))
        jump = app.screen
        assert isinstance(jump, JumpScreen)
        assert [widget.id for widget in jump._targets.values()][:3] == ["classes", "templates", "image"]
        await pilot.press("d")
        await until(pilot, lambda: app.screen.query_one("#image", Input).has_focus)
        assert "d" not in app.screen.query_one("#image", Input).value[-1:]
        await pilot.press("ctrl+o", "6")
        await until(pilot, lambda: getattr(app.screen, "PAGE", "") == "logs")


async def test_the_theme_is_kept_and_changes_the_colours_that_are_drawn(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    app = ClipApp(runs, settings=Settings.load(file))
    async with app.run_test(size=(80, 24)) as pilot:
        await says(pilot, "● running")
        assert app.theme == DARK.name
        app.theme = LIGHT.name
        await until(pilot, lambda: Settings.load(file).theme == LIGHT.name)
        await pilot.pause(0.2)
        drawn = app.screen._compositor.render_update(full=True)
        colours = {
            segment.style.color.name for segment in app.console.render(drawn) if segment.style and segment.style.color
        }
        assert GREEN not in colours
        assert LIGHT.success in colours
    again = ClipApp(runs, settings=Settings.load(file))
    assert again.theme == LIGHT.name


def test_a_damaged_settings_file_or_an_unknown_theme_is_no_reason_not_to_start(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    for text in ("{", '{"theme": 3}', '{"theme": "nowhere", "other": 1}'):
        file.write_text(text)
        assert ClipApp(tmp_path, settings=Settings.load(file)).theme == DARK.name
    unwritable = Settings.load(Path("/proc/nowhere/settings.json"))
    assert "are not kept" in (unwritable.save() or "")


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    lighter, darker = sorted((_luminance(Color.parse(colour)) for colour in (one, other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: Color) -> float:
    parts = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour.normalized)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def test_text_is_readable_in_every_theme_and_right_differs_from_wrong_without_red_and_green() -> None:
    for theme in THEMES:
        assert theme.background is not None
        for colour in (theme.primary, theme.success, theme.error, theme.warning, theme.accent, theme.foreground):
            assert colour is not None
            assert _contrast(colour, theme.background) > 4.5, (theme.name, colour)
    change = recolour(COLOUR_BLIND)
    assert change is not None
    right, wrong = change.apply(
        [Segment("✓", Style.parse(GREEN)), Segment("✗", Style.parse(f"bold {RED}"))], Color(0, 0, 0)
    )
    assert right.style is not None
    assert wrong.style is not None
    assert right.style.color is not None
    assert wrong.style.color is not None
    green, red = right.style.color.get_truecolor(), wrong.style.color.get_truecolor()
    assert green.blue - red.blue > 60, "they differ in blue, which red-green blindness leaves"
    assert wrong.style.bold
    assert recolour(DARK) is None


def test_a_fuzzy_filter_finds_letters_in_order() -> None:
    assert fuzzy("vst", ["validation set", "training set", "vast"])[0] in (0, 2)
    assert fuzzy("xyz", ["validation set"]) == []
    assert fuzzy("red", ["runs/early decay", "a [red] fox"]) == [1, 0], "what has it whole comes first"
    assert fuzzy(" ", ["a", "b"]) == [0, 1]


async def test_opening_a_run_shows_its_state_at_once(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        app.open_run(runs / "older")
        assert app.snapshot is not None
        assert app.snapshot.state is State.FINISHED


async def test_a_second_trainer_is_not_started_beside_the_first(runs: Path) -> None:
    writer = RunWriter(runs / "older")
    log = RunPaths(runs / "older").log
    before = log.read_text()
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        app.start_trainer(runs / "older", [], resume=True)
        await until(pilot, lambda: bool(app._notifications))
        assert app.trainers == {}
        assert [n.severity for n in app._notifications] == ["error"]
    writer.close()
    assert log.read_text() == before


async def test_hostile_texts_are_never_interpreted_in_what_is_asked_found_named_and_compared(runs: Path) -> None:
    make_run(runs / "[red]evil\u202e", state=State.FINISHED, hostile=True)
    Label(name=HOSTILE[1], note=HOSTILE[2]).write(RunPaths(runs / "older").label)
    app = ClipApp(runs)

    def check() -> None:
        shown = screen_text(app)
        assert not [sign for sign in shown if unicodedata.category(sign) in ("Cc", "Cs") and sign != "\n"]
        assert not set(shown) & set("\u202e\u2066\x1b\x07\x9b")

    async with app.run_test(size=(160, 50), notifications=True) as pilot:
        await says(pilot, "[red]evil")
        check()
        app.compare([runs / "hostile", runs / "[red]evil\u202e"])
        await says(pilot, "training pairs")
        check()
        await pilot.press("escape")
        await opened(pilot, runs / "hostile", "retrieve")
        app.encoders = FixedEncoders()
        screen = app.screen
        assert isinstance(screen, RetrieveScreen)
        await until(pilot, lambda: bool(screen.gallery.images))
        app.second = Model(runs / "hostile" / "checkpoints" / "x", "torch", HOSTILE[0])
        screen.query_one("#query", Input).value = HOSTILE[0]
        await pilot.press("slash", "enter")
        await until(pilot, lambda: len(screen.answers) == 2)
        await pilot.pause(0.2)
        check()
        screen.query_one("#table", DataTable).focus()
        await pilot.press("enter")
        await says(pilot, "esc closes")
        check()
        await pilot.press("escape", "5")
        classify = app.screen
        assert isinstance(classify, ClassifyScreen)
        await until(pilot, lambda: bool(classify.gallery.images))
        await pilot.press("s")
        await until(pilot, lambda: bool(classify.outcomes.every))
        await pilot.pause(0.2)
        check()
        app.push_screen(Chooser(HOSTILE[0], [], None))
        await pilot.pause(0.1)
        check()
