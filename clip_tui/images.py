"""Which way images are drawn, and what all ways share: the size of a cell and of an image in pixels."""

import fcntl
import struct
import sys
import termios
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

CELL = (10, 20)  # pixels, assumed where the terminal does not say
MAX_SIDE = 1600  # pixels


class Way(StrEnum):
    """How an image is drawn; `--images`."""

    HALFBLOCKS = "halfblocks"
    KITTY = "kitty"


def choose(wanted: Way, *, ascii_only: bool, no_color: bool, true_colour: bool, web: bool) -> tuple[Way, str]:
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
    return (Way.HALFBLOCKS, f"--images {wanted} is ignored: {reason}.") if reason else (wanted, "")


def cell_size() -> tuple[int, int]:
    """Width and height of a cell in pixels, as the terminal says (TIOCGWINSZ), else 10 x 20."""
    for stream in (sys.__stdin__, sys.__stderr__):
        try:
            answer = fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, bytes(8)) if stream else bytes(8)
        except (OSError, ValueError):
            continue
        rows, columns, width, height = struct.unpack("HHHH", answer)
        if rows and columns and width >= columns and height >= rows:
            return width // columns, height // rows
    return CELL


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
    from PIL import Image

    from clip_core.data.preprocess import load_image

    image = load_image(path).convert("RGB")
    scale = min(columns * cell[0] / image.width, rows * cell[1] / image.height)
    across = max(1, min(columns, round(image.width * scale / cell[0])))
    down = max(1, min(rows, round(image.height * scale / cell[1])))
    shrink = min(1.0, MAX_SIDE / max(across * cell[0], down * cell[1]))
    size = max(1, int(across * cell[0] * shrink)), max(1, int(down * cell[1] * shrink))
    return image.resize(size, Image.Resampling.LANCZOS), across, down
