"""What is sent to the terminal: a terminal emulator then shows what was meant, character by character."""

from typing import Any

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from clip_tui.output import Shown

WIDTH, HEIGHT = 24, 4
CONSOLE = Console(color_system="truecolor", force_terminal=True, width=WIDTH)
STYLES = [
    None,
    Style(color="#ff0000"),
    Style(color="#ff0000", bgcolor="#0000ff"),
    Style(bold=True, color="#00ff00"),
    Style(reverse=True),
    Style(underline=True, bgcolor="#102030"),
]


class Terminal:
    """A terminal emulator on one side, and the cells as they were meant on the other."""

    def __init__(self) -> None:
        self.screen = pyte.Screen(WIDTH, HEIGHT)
        self.stream = pyte.Stream(self.screen)
        self.shown, self.sent = Shown(), 0
        self.meant = [[(" ", None)] * WIDTH for _ in range(HEIGHT)]

    def draw(self, y: int, x: int, segments: list[tuple[str, Style | None]]) -> None:
        strip = Strip([Segment(text, style) for text, style in segments])
        sequence = self.shown.changes([(y, x, strip)], CONSOLE)
        self.sent += len(sequence)
        self.stream.feed(sequence)
        for text, style in segments:
            for character in text:
                self.meant[y][x] = (character, style)
                x += 1

    def differences(self) -> list[Any]:
        return [
            (y, x, cell, self.meant[y][x])
            for y in range(HEIGHT)
            for x in range(WIDTH)
            if not _is(cell := self.screen.buffer[y][x], *self.meant[y][x])
        ]


def _is(cell: Any, character: str, style: Style | None) -> bool:
    style = style or Style()
    return bool(
        cell.data == character
        and cell.bold == bool(style.bold)
        and cell.reverse == bool(style.reverse)
        and cell.underscore == bool(style.underline)
        and cell.fg == (style.color.name[1:] if style.color else "default")
        and cell.bg == (style.bgcolor.name[1:] if style.bgcolor else "default")
    )


drawn = st.lists(st.tuples(st.text("ab │⣿é⚠✓…", max_size=8), st.sampled_from(STYLES)), max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1), drawn), max_size=12))
def test_the_terminal_shows_what_was_drawn(updates: list[tuple[int, int, list[tuple[str, Style | None]]]]) -> None:
    terminal = Terminal()
    for y, x, segments in updates:
        room = WIDTH - x
        fitting = []
        for text, style in segments:
            fitting.append((text[:room], style))
            room -= len(text[:room])
        terminal.draw(y, x, fitting)
    assert terminal.differences() == []


def test_nothing_is_sent_for_cells_that_are_shown_already() -> None:
    terminal = Terminal()
    line = [("step 41 of 100", STYLES[1]), (" left", STYLES[2])]
    terminal.draw(0, 0, line)
    before = terminal.sent
    terminal.draw(0, 0, line)
    assert terminal.sent == before
    terminal.draw(0, 0, [("step 42 of 100", STYLES[1]), (" left", STYLES[2])])
    assert terminal.sent - before < 40  # a movement, a colour, one digit
    terminal.shown.forget()
    terminal.draw(0, 0, line)
    assert terminal.sent - before > 40


@pytest.mark.parametrize("wide", ["漢字", "e\u0301x", "🦊"])
def test_a_text_that_was_partly_overwritten_is_sent_again(wide: str) -> None:
    shown = Shown()
    strip = Strip([Segment(wide)])
    assert wide in shown.changes([(0, 2, strip)], CONSOLE)
    assert shown.changes([(0, 2, strip)], CONSOLE) == ""
    shown.changes([(0, 2 + strip.cell_length - 1, Strip([Segment("x")]))], CONSOLE)
    assert wide in shown.changes([(0, 2, strip)], CONSOLE)


def test_control_characters_never_reach_the_terminal() -> None:
    sent = Shown().changes([(0, 0, Strip([Segment("a\x1b[2J\x07\x9b31m\u202eb", STYLES[3])]))], CONSOLE)
    assert "a?[2J??31mb" in sent
    assert not set("\x07\x9b\u202e") & set(sent)
