"""The theme: a colour for everything that is coloured by its name."""

import pytest
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.color import Color
from textual.theme import BUILTIN_THEMES, Theme

from clip_core.run.records import State
from clip_tui.status_line import _DOT
from clip_tui.theme import (
    BLUE,
    DIM_BLUE,
    GREEN,
    GREY,
    MAUVE,
    ORANGE,
    RED,
    STATE_STYLES,
    THEMES,
    YELLOW,
    contrast,
    readable,
    recolour,
)
from clip_tui.widgets.heat_map import cell_style


def test_every_state_of_a_run_has_a_colour() -> None:
    assert set(STATE_STYLES) == {state.value for state in State}


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_what_widgets_draw_is_readable_on_the_background_of_each_theme(theme: Theme) -> None:
    """A contrast of 4.5 for text and of 3 for the rest (WCAG 2.1); the empty part of a bar may be faint."""
    replaced = recolour(theme)
    background = Color.parse(str(theme.background))
    for colour in (BLUE, GREEN, RED, YELLOW, ORANGE, MAUVE, GREY, DIM_BLUE):
        segment = Segment("x", Style(color=colour))
        drawn = (replaced.apply([segment], background) if replaced else [segment])[0].style
        assert drawn is not None
        assert drawn.color is not None
        ratio = contrast(Color.from_rich_color(drawn.color), background)
        assert ratio >= (3.0 if colour == DIM_BLUE else 4.5), f"{colour} in {theme.name}: {ratio:.2f}"
    cell = cell_style(0)
    assert replaced is None or replaced.apply([Segment("x", cell)], background)[0].style == cell, "no colour of a theme"


def test_a_line_that_is_joined_by_dots_is_not_dim() -> None:
    assert not _DOT.join([Text("a"), Text("b")]).style


@pytest.mark.parametrize(
    "theme", [each for each in BUILTIN_THEMES.values() if not each.ansi], ids=lambda each: each.name
)
def test_keys_and_selected_rows_are_readable_in_the_themes_of_textual_too(theme: Theme) -> None:
    variables = readable({**theme.to_color_system().generate(), **theme.variables})
    for text, behind, least in (
        ("footer-key-foreground", "footer-background", 3.0),
        ("footer-description-foreground", "footer-background", 7.0),
        ("block-cursor-foreground", "block-cursor-background", 5.0),
        ("primary", "background", 4.5),
    ):
        ratio = contrast(Color.parse(variables[text]), Color.parse(variables[behind]))
        assert ratio >= least, f"{text} on {behind}: {ratio:.2f}"
