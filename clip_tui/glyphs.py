"""What stands for the characters that are drawn with where a terminal has ASCII alone."""

import unicodedata
from collections.abc import Iterable

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_GROUPS: dict[str, str] = {
    "-": "─╌╍┄┅▔▃–—⎯╴╶╸╺‐‑−",
    "=": "━═▄",
    "_": "▁",
    "%": "▇▓",
    "|": "│┃║▏▎▍▌▐▕╵╷╹╻┆┇┊┋⎸",
    "+": "┌┐└┘├┤┬┴┼╭╮╰╯╔╗╚╝┏┓┗┛┣┫┳┻╋✓▅",
    "#": "█▉▊▋▀■▪",
    ":": "▒",
    "*": "●◉⬤•★▆",
    "o": "○◌◯",
    "x": "×✗",
    ">": "→▶▸⟩›",
    "<": "←◀‹",
    "^": "↑▲⭘",
    "v": "↓▼◆",
    ".": "·░▂",
    "~": "…",  # the sign of something cut, of one cell
    "d": "Δ",
    "!": "⚠",
    "'": "’‘",
    '"': "“”",
}
_TABLE = {ord(character): plain for plain, many in _GROUPS.items() for character in many}


def to_ascii(text: str) -> str:
    """`text` in ASCII and of the same width on the screen: lines stay lines, accents go, the rest becomes `?`."""
    if text.isascii():
        return text
    return "".join(_plain(character) for character in text.translate(_TABLE))


def _plain(character: str) -> str:
    if character.isascii():
        return character
    base = unicodedata.normalize("NFKD", character)[0]
    width = cell_len(character)
    return base if base.isascii() and width == 1 else "?" * width


class AsciiFilter(LineFilter):
    """The last thing between the app and the terminal under `--ascii`: nothing else leaves."""

    def apply(self, segments: Iterable[Segment], background: Color) -> list[Segment]:
        return [Segment(to_ascii(text), style, control) for text, style, control in segments]
