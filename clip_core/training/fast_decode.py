"""The images to train on, decoded two to three times as fast as inference does, and at most one 8-bit level off.

simplejpeg (libjpeg-turbo) decodes a JPEG to the same pixels as Pillow, and torch resizes in 8 bits. Any other image,
and any that simplejpeg refuses, is decoded exactly, and gets the same error message.

Shapes: S the side of the square; H, W of the image.
"""

import io
from importlib.metadata import version
from pathlib import Path

import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clip_core.data.image_files import member_of
from clip_core.data.preprocess import (
    MAX_PIXELS,
    Pixels,
    crop_corner,
    load_bytes,
    load_image,
    orientation,
    resize_and_crop,
    resized_sides,
)
from clip_core.data.store import Decoder
from clip_core.errors import ImageError
from clip_core.network import Preprocessing

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_EXIF = b"Exif\0\0"
_COLOURS = frozenset({"Gray", "YCbCr"})  # others, such as CMYK, are converted by Pillow

# EXIF orientation -> (transposed, mirrored top to bottom, mirrored left to right), in this order.
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def decode_fast(path: Path, preprocessing: Preprocessing) -> Pixels:
    """An image as uint8 (S, S, 3).

    Raises:
        ImageError: as `load_image` does.
    """
    pixels = _fast(_bytes_of(path), preprocessing)
    return resize_and_crop(load_image(path), preprocessing) if pixels is None else pixels


def decode_content(content: bytes, name: str, preprocessing: Preprocessing) -> Pixels:
    """The content of an image file as uint8 (S, S, 3).

    Args:
        name: for the message of an error.
    Raises:
        ImageError: as `load_image` does.
    """
    pixels = _fast(_whole_jpeg(content), preprocessing)
    return resize_and_crop(load_bytes(content, name), preprocessing) if pixels is None else pixels


def _fast(content: bytes | None, preprocessing: Preprocessing) -> Pixels | None:
    """A JPEG as uint8 (S, S, 3); None for an image that has to be decoded exactly."""
    decoded = _decode_jpeg(content) if content is not None and preprocessing.resize_mode != "longest" else None
    if decoded is None:
        return None
    size = preprocessing.image_size
    height, width = decoded.shape[1:]
    resized_width, resized_height = resized_sides((width, height), preprocessing)
    if (resized_height, resized_width) != (height, width):
        sides, mode = [resized_height, resized_width], preprocessing.interpolation
        decoded = F.interpolate(decoded[None], sides, mode=mode, antialias=True)[0]
    left, top = crop_corner((resized_width, resized_height), preprocessing)
    pixels: Pixels = decoded.numpy().transpose(1, 2, 0)[top : top + size, left : left + size]
    return pixels


FAST = Decoder(f"simplejpeg {version('simplejpeg')}, torch {torch.__version__}", decode_fast)


def _bytes_of(path: Path) -> bytes | None:
    """The bytes of what may be a whole JPEG, else None."""
    try:
        member = member_of(path)
        if member is None and not path.is_file():
            return None
        content = member.read() if member else path.read_bytes()
    except (OSError, ValueError, ImageError):
        return None
    return _whole_jpeg(content)


def _whole_jpeg(content: bytes) -> bytes | None:
    # One that is cut short may decode to the end in grey: Pillow refuses it.
    return content if content.startswith(_START) and content.rstrip(b"\0").endswith(_END) else None


def _decode_jpeg(content: bytes) -> Tensor | None:
    """Upright RGB, uint8 (3, H, W); None for an image that has to be decoded exactly."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in _COLOURS or not 0 < width * height <= MAX_PIXELS:
            return None
        turned = _orientation(content) if _EXIF in content else 1
        decoded = torch.from_numpy(simplejpeg.decode_jpeg(content, "RGB")).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError, LookupError):
        return None
    transposed, mirrored_down, mirrored_across = _TURNS.get(turned, (False, False, False))
    if transposed:
        decoded = decoded.transpose(1, 2)
    flips = [axis for axis, mirrored in ((1, mirrored_down), (2, mirrored_across)) if mirrored]
    return decoded.flip(flips) if flips else decoded


def _orientation(content: bytes) -> int:
    with Image.open(io.BytesIO(content), formats=("JPEG", "MPO")) as image:
        return orientation(image)
