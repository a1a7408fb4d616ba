"""Which way images are drawn, and what all ways share: the size of a cell and of an image in pixels."""

import fcntl
import os
import struct
import subprocess
import sys
import termios
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

CELL = (10, 20)  # pixels, assumed where the terminal does not say
MAX_SIDE = 1600  # pixels
_QUESTION = "#{sixel_support},#{allow-passthrough}"


class Way(StrEnum):
    """How an image is drawn; `--images`."""

    HALFBLOCKS = "halfblocks"
    KITTY = "kitty"
    SIXEL = "sixel"


class Tmux(NamedTuple):
    """What a tmux lets through: Sixel, which it draws itself, and sequences for the terminal around it."""

    sixel: bool
    passthrough: bool


def choose(
    wanted: Way, *, ascii_only: bool, no_color: bool, true_colour: bool, web: bool, tmux: Tmux | None, cell_known: bool
) -> tuple[Way, str]:
    """The way that is possible, and in one line why it is not the wanted one (empty where it is)."""
    if wanted is Way.HALFBLOCKS:
        return wanted, ""
    reason = ""
    if ascii_only:
        reason = "--ascii draws images with ASCII characters"
    elif no_color:
        reason = "NO_COLOR draws images without colours, with ASCII characters"
    elif web:
        reason = "a browser gets half blocks"
    elif wanted is Way.KITTY and not true_colour:
        reason = "the terminal must have 24-bit colours (COLORTERM=truecolor); half blocks are drawn"
    elif wanted is Way.KITTY and tmux is not None and not tmux.passthrough:
        reason = "tmux keeps images back (set -g allow-passthrough on); half blocks are drawn"
    elif wanted is Way.SIXEL and tmux is not None and not tmux.sixel:
        reason = "this tmux has no Sixel (3.4 may have, and --images kitty works in tmux); half blocks are drawn"
    elif wanted is Way.SIXEL and not cell_known:
        reason = "the terminal does not say how many pixels its cells have; half blocks are drawn"
    return (Way.HALFBLOCKS, f"--images {wanted} is ignored: {reason}.") if reason else (wanted, "")


def asked_tmux() -> Tmux | None:
    """What the tmux around this process lets through; None outside tmux, everything where it cannot be asked."""
    if not os.environ.get("TMUX"):
        return None
    command = ["tmux", "display-message", "-p", "-t", os.environ.get("TMUX_PANE", ""), _QUESTION]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return Tmux(sixel=True, passthrough=True)
    sixel, _, passthrough = answer.strip().partition(",")
    return Tmux(sixel == "1", passthrough not in ("0", "off"))


def cell_known() -> bool:
    """Whether the terminal says how many pixels a cell has."""
    return _asked_cell_size() is not None


def cell_size() -> tuple[int, int]:
    """Width and height of a cell in pixels, as the terminal says (TIOCGWINSZ), else 10 x 20."""
    return _asked_cell_size() or CELL


def _asked_cell_size() -> tuple[int, int] | None:
    for stream in (sys.__stdin__, sys.__stderr__):
        try:
            answer = fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, bytes(8)) if stream else bytes(8)
        except (OSError, ValueError):
            continue
        rows, columns, width, height = struct.unpack("HHHH", answer)
        if rows and columns and width >= columns and height >= rows:
            return width // columns, height // rows
    return None


def stamp(path: Path) -> int:
    """When the file was last changed, 0 where it cannot be asked."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def fitted(path: Path, columns: int, rows: int, cell: tuple[int, int]) -> tuple["Image.Image", int, int]:
    """The image as large as fits into the cells: RGB pixels, and the columns and rows that it takes.

    Raises:
        ImageError: if the image cannot be decoded.
    """
    image = _loaded(path)
    scale = min(columns * cell[0] / image.width, rows * cell[1] / image.height)
    across = max(1, min(columns, round(image.width * scale / cell[0])))
    down = max(1, min(rows, round(image.height * scale / cell[1])))
    return _resized(image, across, down, cell), across, down


def scaled(path: Path, across: int, down: int, cell: tuple[int, int]) -> "Image.Image":
    """The image for so many columns and rows, at most 1600 pixels wide and high. Raises ImageError, as `fitted`."""
    return _resized(_loaded(path), across, down, cell)


def _loaded(path: Path) -> "Image.Image":
    from clip_core.data.preprocess import load_image

    return load_image(path).convert("RGB")


def _resized(image: "Image.Image", across: int, down: int, cell: tuple[int, int]) -> "Image.Image":
    from PIL import Image

    shrink = min(1.0, MAX_SIDE / max(across * cell[0], down * cell[1]))
    size = max(1, int(across * cell[0] * shrink)), max(1, int(down * cell[1] * shrink))
    return image.resize(size, Image.Resampling.LANCZOS)
