"""An image as rows of half blocks (two pixels per cell), or as ASCII characters by brightness."""

from collections import OrderedDict
from pathlib import Path
from threading import Lock

from PIL import Image
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from clip_core.data.preprocess import load_image

UPPER_HALF = "▀"
RAMP = " .:-=+*#%@"
CACHED = 256  # images

_cache: OrderedDict[tuple[str, int, int, int, bool], list[Strip]] = OrderedDict()
_lock = Lock()


def strips_of(path: Path, columns: int, rows: int, *, plain: bool) -> list[Strip]:
    """The image as large as fits into `columns` x `rows` cells, with its aspect ratio.

    Args:
        plain: ASCII characters instead of coloured half blocks (`--ascii`, NO_COLOR).
    Raises:
        ImageError: if the image cannot be decoded.
    """
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        stamp = 0
    key = (str(path), stamp, columns, rows, plain)
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    strips = _draw(load_image(path), columns, rows, plain=plain)
    with _lock:
        _cache[key] = strips
        while len(_cache) > CACHED:
            _cache.popitem(last=False)
    return strips


def _draw(image: Image.Image, columns: int, rows: int, *, plain: bool) -> list[Strip]:
    scale = min(columns / image.width, 2 * rows / image.height)
    width = max(1, min(columns, round(image.width * scale)))
    height = max(2, 2 * max(1, min(rows, round(image.height * scale / 2))))
    if plain:
        return _ramp(image.convert("L").resize((width, height // 2), Image.Resampling.BOX))
    return _halves(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))


def _halves(image: Image.Image) -> list[Strip]:
    pixels = image.tobytes()
    stride = 3 * image.width
    strips = []
    for y in range(0, image.height, 2):
        upper, lower = pixels[y * stride : (y + 1) * stride], pixels[(y + 1) * stride : (y + 2) * stride]
        cells = [
            Segment(UPPER_HALF, Style(color=_rgb(upper[x : x + 3]), bgcolor=_rgb(lower[x : x + 3])))
            for x in range(0, stride, 3)
        ]
        strips.append(Strip(cells, image.width))
    return strips


def _rgb(pixel: bytes) -> Color:
    return Color.from_rgb(pixel[0], pixel[1], pixel[2])


def _ramp(image: Image.Image) -> list[Strip]:
    pixels = image.tobytes()
    rows = [pixels[start : start + image.width] for start in range(0, len(pixels), image.width)]
    return [Strip([Segment("".join(RAMP[value * len(RAMP) // 256] for value in row))], image.width) for row in rows]
