"""How an image becomes numbers, for both backends: read, resize, crop, normalise; Pillow and NumPy only.

Shapes: N images, S the side of the square that the model sees.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from clip_core.data.image_files import HAS_HEIF, HEIF_SUFFIXES, check_is_file, member_of, read_content
from clip_core.errors import ImageError
from clip_core.network import Preprocessing

ImageSource = str | Path | Image.Image | np.ndarray
Pixels = NDArray[np.uint8]

T = TypeVar("T")

_SAMPLE = 25  # images whose size is asked for
MAX_PIXELS = 64_000_000  # larger images are refused before a pixel is decoded

# Formats that are decoded inside this process: EPS, for one, would start Ghostscript.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

# What Pillow's decoders raise on damaged files, beside OSError.
_DAMAGED = (
    AssertionError, OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, AttributeError, OverflowError,
    MemoryError, NotImplementedError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow only warns where we refuse (see MAX_PIXELS).
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def load_image(source: ImageSource) -> Image.Image:
    """An image as 8-bit RGB, upright, transparent parts laid on white.

    Args:
        source: a path (of a file, or of a member of a tar shard: see `images`), a Pillow image, or an array of
            uint8 with shape (H, W), (H, W, 3) or (H, W, 4).
    Raises:
        ImageError: if it is missing, unreadable, cut short, larger than 64 megapixels, or no image.
    """
    if isinstance(source, np.ndarray):
        return _decoded("the array", lambda: _upright_rgb(_from_array(source)))
    if isinstance(source, Image.Image):
        return _decoded("the image", lambda: _upright_rgb(source))
    if not isinstance(source, str | PathLike) or isinstance(os.fspath(source), bytes):
        raise ImageError(
            f"an image is of type {type(source).__name__}; give a path, a PIL image (PIL.Image.open(io.BytesIO(data)) "
            "of bytes) or an array of uint8."
        )
    return _decoded(str(source), lambda: _from_file(Path(source), lambda image: _upright_rgb(image, str(source))))


def load_bytes(content: bytes, name: str) -> Image.Image:
    """As `load_image`, of the content of a file; `name` is for its messages."""

    def read() -> Image.Image:
        with Image.open(io.BytesIO(content), formats=_known_formats()) as image:
            return _upright_rgb(image, name)

    return _decoded(name, read)


def load_reduced(
    path: Path | str, side: int, seen: Callable[[bytes], None], content: bytes | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """An image as `load_image` gives it, but a JPEG only as large as `side` needs; to measure, not to train on.

    Args:
        path: of a file, or of a member of a tar shard.
        content: of the file, where it was read already; the path is then only for messages.
        side: a JPEG is decoded at a half, a quarter or an eighth of its size, never below this, pixels.
        seen: is given the content of the file.
    Returns:
        The image, and its upright width and height before it was reduced.
    Raises:
        ImageError: as `load_image`, for the same files.
    """

    def read(image: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
        _check_size(image, str(path))
        width, height = image.size
        turned = orientation(image) in (5, 6, 7, 8)
        image.draft(None, (side, side))  # of formats other than JPEG it does nothing
        return _upright_rgb(image, str(path)), (height, width) if turned else (width, height)

    def decode() -> tuple[Image.Image, tuple[int, int]]:
        read_bytes = read_content(Path(path)) if content is None else content
        seen(read_bytes)
        with Image.open(io.BytesIO(read_bytes), formats=_known_formats()) as image:
            return read(image)

    return _decoded(str(path), decode)


def typical_side(paths: Sequence[Path]) -> int:
    """The median of the shorter sides, in pixels, of a few images spread over these; 0 where none can be read.

    Nothing is decoded.
    """
    chosen = {paths[place] for place in np.linspace(0, len(paths) - 1, _SAMPLE).astype(int)} if paths else ()
    sides = []
    for path in chosen:
        with suppress(ImageError):
            sides.append(_shorter_side(path))
    return int(np.median(sides)) if sides else 0


def _shorter_side(path: Path) -> int:
    return _decoded(str(path), lambda: _from_file(path, lambda image: min(image.size)))


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """An image as the square that the model sees: resized (antialiased), its centre cropped or its sides padded.

    Args:
        image: 8-bit RGB, as `load_image` returns it.
        preprocessing: S and how to get there.
    Returns:
        uint8, shape (S, S, 3).
    Raises:
        ImageError: if the image is so narrow that its long side would pass 64 megapixels.
    Source: torchvision's Resize and CenterCrop; open_clip's resize modes.
    """
    size = preprocessing.image_size
    resized = resized_sides(image.size, preprocessing)
    if resized != image.size:
        image = image.resize(resized, _FILTERS[preprocessing.interpolation])
    if resized == (size, size):
        return np.asarray(image, dtype=np.uint8)
    if preprocessing.resize_mode == "longest":
        square = Image.new("RGB", (size, size), (preprocessing.fill,) * 3)
        square.paste(image, ((size - resized[0]) // 2, (size - resized[1]) // 2))
        return np.asarray(square, dtype=np.uint8)
    left, top = crop_corner(resized, preprocessing)
    return np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.uint8)


def crop_corner(sides: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Left and top of the centre crop of a resized image; see `Preprocessing.crop_rounding`."""
    left, top = ((side - preprocessing.image_size) / 2 for side in sides)
    return (round(left), round(top)) if preprocessing.crop_rounding == "round" else (int(left), int(top))


def resized_sides(sides: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Width and height before the crop or the padding."""
    size, (width, height) = preprocessing.resize_size or preprocessing.image_size, sides
    short, long = min(sides), max(sides)
    if preprocessing.resize_mode == "squash":
        return size, size
    if preprocessing.resize_mode == "longest":
        ratio = long / size  # divided by, as open_clip does: multiplying by size / long rounds some halves elsewhere
        return max(round(width / ratio), 1), max(round(height / ratio), 1)
    resized_long = int(size * long / short)
    if size * resized_long > MAX_PIXELS:
        raise ImageError(f"the image is too narrow, {width} x {height} pixels; crop it.")
    return (size, resized_long) if width <= height else (resized_long, size)


def normalise(pixels: Pixels, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Scale to [0, 1], less the mean, by the deviation.  uint8 (N, S, S, 3) -> float32 (N, 3, S, S)"""
    table = _normalised_values(preprocessing.mean, preprocessing.std)
    count, height, width, _ = pixels.shape
    values = np.empty((count, 3, height, width), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], pixels[..., channel], out=values[:, channel])
    return values


def preprocess(images: Sequence[ImageSource], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Images as `pixel_values`, float32 (N, 3, S, S).

    Raises:
        ImageError: naming the first image that cannot be used.
    """
    size = preprocessing.image_size
    pixels = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for row, source in enumerate(images):
        pixels[row] = resize_and_crop(load_image(source), preprocessing)
    return normalise(pixels, preprocessing)


# ---------------------------------------------------------------- reading


def _decoded(name: str, decode: Callable[[], T]) -> T:
    """Run a decoder; whatever it raises on a damaged file becomes one sentence."""
    try:
        return decode()
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"no image at {name}; correct the path.") from None
    except PermissionError:
        raise ImageError(f"{name} may not be read; change its permissions.") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has more than {MAX_PIXELS // 10**6} megapixels; shrink it.") from None
    except UnidentifiedImageError:
        if not HAS_HEIF and Path(name).suffix.lower() in HEIF_SUFFIXES:
            raise ImageError(
                f"{name} is HEIC, which needs pillow-heif; pip install 'clip-tui[heic]', or save it as JPEG."
            ) from None
        raise ImageError(f"{name} is not an image in a known format; save it as PNG or JPEG.") from None
    except _DAMAGED as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        what = "is cut short" if "truncated" in cause else "cannot be decoded"
        raise ImageError(f"{name} {what} ({cause}); save or fetch it again.") from None


def _from_file(path: Path, read: Callable[[Image.Image], T]) -> T:
    """What `read` makes of the image at `path`, which is closed afterwards."""
    if member_of(path) is not None:
        with Image.open(io.BytesIO(read_content(path)), formats=_known_formats()) as image:
            return read(image)
    check_is_file(path)
    with Image.open(path, formats=_known_formats()) as image:
        return read(image)


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or 0 in array.shape:
        raise ImageError(
            f"an array of {array.dtype} with shape {array.shape} is not an image; "
            "give uint8 with shape (H, W), (H, W, 3) or (H, W, 4)."
        )
    return Image.fromarray(array)


def _upright_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    _check_size(image, name)
    try:
        image.load()
    except (AssertionError, AttributeError, ValueError) as error:
        if getattr(image, "fp", None) is None or "closed" in str(error):
            raise ImageError(f"{name} has been closed before it was read; use it before, or open it again.") from None
        raise
    turn = _TURNS.get(orientation(image))
    rgb = _as_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise ImageError(f"{name} has {width} x {height} pixels, more than {limit} megapixels; shrink it.")
    if not width or not height:
        raise ImageError(f"{name} has no pixels; save it again.")


def orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 is upright, and the default."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGED:  # broken metadata does not make the image unusable
        return 1


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 or 32 bits scaled to 8; Pillow's own conversion would clip them to white."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0).clip(min=0)
    brightest = float(values.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and 255 < brightest <= 65535):
        white = 65535.0
    elif image.mode == "F" and brightest <= 1:
        white = 1.0
    else:
        white = max(brightest, 255.0)
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


@lru_cache(maxsize=1)
def _known_formats() -> tuple[str, ...]:
    Image.init()
    if HAS_HEIF:
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@lru_cache(maxsize=8)
def _normalised_values(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """What each byte value becomes in each channel, float32 (3, 256): exact, and faster than arithmetic."""
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    middle = np.array(mean, dtype=np.float32)[:, None]
    return np.asarray((scaled - middle) / np.array(std, dtype=np.float32)[:, None], dtype=np.float32)
