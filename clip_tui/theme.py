"""Our themes: dark, light, and both for colour-blind readers. The command palette offers all of Textual's too.

Widgets draw in the colours of the dark theme. In another theme, `Recolour` replaces them as a line leaves for the
terminal, so that text on a light background is dark and right and wrong differ for everyone.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache

from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter
from textual.theme import Theme

BLUE, GREEN, RED, YELLOW = "#7dc4e4", "#a6da95", "#ed8796", "#eed49f"
ORANGE, MAUVE, GREY = "#f5a97f", "#c6a0f6", "#9aa2bd"
DIM_BLUE, TRACK = "#5b7f99", "#2c3145"  # bars after the first one, and the empty part of a bar

# Series of a plot, in the order in which they are drawn.
SERIES = (BLUE, ORANGE, GREEN, MAUVE, RED)

STATE_STYLES: dict[str, str] = {
    "starting": YELLOW,
    "running": GREEN,
    "paused": YELLOW,
    "finished": BLUE,
    "stopped": GREY,
    "failed": RED,
    "stalled": ORANGE,
    "killed": RED,
}

_REFERENCE = (BLUE, GREEN, RED, YELLOW, ORANGE, MAUVE, GREY, DIM_BLUE, TRACK)
_LIGHT = ("#0b62c4", "#1a7431", "#c2182b", "#8a6100", "#b34700", "#7a3ec8", "#57606a", "#5f86b0", "#d0d5de")
# Okabe & Ito's colours, whose pairs differ for every kind of colour vision; darker ones on a light background.
_OKABE = ("#56b4e9", "#00b388", "#e8743b", "#f0e442", "#e69f00", "#cc79a7", "#9aa2bd", "#3f7ea3", "#2c3145")
_OKABE_LIGHT = ("#0072b2", "#00694f", "#b34700", "#7a6a00", "#8f5f00", "#9c3f74", "#57606a", "#5f86b0", "#d0d5de")


def _theme(name: str, palette: tuple[str, ...], *, dark: bool) -> Theme:
    blue, green, red, yellow, orange, mauve, grey, _, _ = palette
    background, surface, panel, border = (
        ("#12141c", "#191c27", "#242838", "#3a4058") if dark else ("#fbfbfd", "#f0f2f6", "#e3e7ee", "#b4bcc9")
    )
    return Theme(
        name=name,
        primary=blue,
        secondary=mauve,
        accent=orange,
        success=green,
        warning=yellow,
        error=red,
        foreground="#d5d9e8" if dark else "#1b2330",
        background=background,
        surface=surface,
        panel=panel,
        dark=dark,
        variables={
            "border": border,
            "footer-background": surface,
            "footer-key-foreground": blue,
            "footer-description-foreground": grey,
            "input-selection-background": f"{blue} 30%",
            "block-cursor-background": "#2f4a63" if dark else "#bcd6f2",
            "block-cursor-foreground": "#ffffff" if dark else "#10151f",
            "block-cursor-text-style": "bold",
            "block-cursor-blurred-background": panel,
            "scrollbar": border,
            "scrollbar-background": surface,
        },
    )


DARK = _theme("clip-dark", _REFERENCE, dark=True)
LIGHT = _theme("clip-light", _LIGHT, dark=False)
COLOUR_BLIND = _theme("clip-colour-blind", _OKABE, dark=True)
COLOUR_BLIND_LIGHT = _theme("clip-colour-blind-light", _OKABE_LIGHT, dark=False)
THEMES = (DARK, LIGHT, COLOUR_BLIND, COLOUR_BLIND_LIGHT)

_TEXT, _TITLES = 11.0, 5.0  # contrasts with the background; panels, and dim text, have less
_SELECTED = 0.25  # share of the first colour in the background of a selected row
_PALETTES = {LIGHT.name: _LIGHT, COLOUR_BLIND.name: _OKABE, COLOUR_BLIND_LIGHT.name: _OKABE_LIGHT}


def recolour(theme: Theme) -> "Recolour | None":
    """The filter for a theme; None where the colours stay: our dark theme, and Textual's dark ones."""
    palette = _PALETTES.get(theme.name, _REFERENCE if theme.dark else _LIGHT)
    if palette == _REFERENCE:
        return None
    return Recolour(dict(zip(map(_rgb, _REFERENCE), map(RichColor.parse, palette), strict=True)))


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = RichColor.parse(colour).get_truecolor()
    return red, green, blue


def readable(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of one of Textual's themes, whose keys, titles and selected rows are often faint on our panels.

    The colour of the text is moved towards black or white until what is dim can be read too, and the first colour
    towards that of the text; a selected row is tinted with it.
    """
    background = Color.parse(variables["background"])
    text = _clear(Color.parse(variables["foreground"]), background.get_contrast_text(1.0), background, _TEXT)
    primary = _clear(Color.parse(variables["primary"]), text, background, _TITLES)
    selected = background.blend(primary, _SELECTED).hex
    return dict(variables) | {
        "foreground": text.hex,
        "primary": primary.hex,
        "footer-background": variables["surface"],
        "footer-key-foreground": primary.hex,
        "footer-description-foreground": text.hex,
        "block-cursor-background": selected,
        "block-cursor-foreground": text.hex,
        "block-cursor-blurred-background": variables["surface"],
        "block-cursor-blurred-foreground": text.hex,
    }


def _clear(colour: Color, towards: Color, background: Color, least: float) -> Color:
    """A colour, moved as little as needed towards another one, so that it has a contrast with the background."""
    moved = (colour.blend(towards, share / 10) for share in range(11))
    return next((each for each in moved if contrast(each, background) >= least), towards)


def contrast(first: Color, second: Color) -> float:
    """The ratio of two luminances, from 1 to 21 (WCAG 2.1)."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Color) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour.normalized]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


class Recolour(LineFilter):
    """Replaces the colours that widgets draw in by those of another theme."""

    def __init__(self, table: Mapping[tuple[int, int, int], RichColor]) -> None:
        super().__init__()
        self._table = table
        self._style = lru_cache(maxsize=4096)(self._recoloured)

    def apply(self, segments: Iterable[Segment], background: Color) -> list[Segment]:
        return [
            Segment(text, self._style(style) if style is not None else None, control)
            for text, style, control in segments
        ]

    def _recoloured(self, style: Style) -> Style:
        color, bgcolor = self._changed(style.color), self._changed(style.bgcolor)
        return style if color is bgcolor is None else style + Style(color=color, bgcolor=bgcolor)

    def _changed(self, color: RichColor | None) -> RichColor | None:
        return self._table.get(color.triplet) if color is not None and color.triplet is not None else None
