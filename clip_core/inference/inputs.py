"""What a caller passes as texts and images, as lists; what is neither is refused in one sentence."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_core.data.preprocess import ImageSource
from clip_core.errors import UsageError
from clip_core.text import printable


def as_texts(texts: Iterable[str], what: str = "texts", *, ordered: bool = True) -> list[str]:
    """A list of strings from any iterable of them: list, array, generator, the keys of a dict.

    Args:
        what: their name, for the message.
        ordered: the answer has their order, which a set has not.
    Raises:
        UsageError: for one string in place of several, and for what is no string.
    """
    if isinstance(texts, str):  # a sequence of letters, which nobody means
        raise UsageError(f"{what} is the string {printable(texts, 40)!r}; give a list of strings: [{what}].")
    items = _listed(texts, what, "strings", ordered=ordered)
    for place, text in enumerate(items):
        if not isinstance(text, str):
            raise UsageError(f"{what}[{place}] is {_named(text)}, not a string; leave it out or replace it.")
    return [str(text) for text in items]  # a NumPy string too


def as_text(text: str, what: str = "text") -> str:
    """One string.

    Raises:
        UsageError: for anything else.
    """
    if not isinstance(text, str):
        raise UsageError(f"{what} is {_named(text)}, not a string; give one string.")
    return str(text)


def as_images(images: Iterable[ImageSource], what: str = "images") -> list[ImageSource]:
    """A list of images from any iterable of them; each is checked when it is read.

    Raises:
        UsageError: for one image or one path in place of several.
    """
    single = isinstance(images, str | PathLike | Image.Image) or (
        isinstance(images, np.ndarray) and images.ndim in (2, 3)
    )
    if single:
        raise UsageError(
            f"{what} is one {'path' if isinstance(images, str | PathLike) else 'image'}; give a list of images, or a "
            "folder as a gallery: clip.gallery(FOLDER)."
        )
    return _listed(images, what, "images", ordered=True)


def as_image(image: ImageSource, what: str = "image") -> ImageSource:
    """One image.

    Raises:
        UsageError: for several in place of one.
    """
    if isinstance(image, list | tuple | set | dict):
        raise UsageError(f"{what} is {_named(image)}; give one image: a path, a PIL image or an array.")
    return image


def as_folder_or_paths(images: str | PathLike[str] | Iterable[str | PathLike[str]]) -> Path | Sequence[Path]:
    """The folder of a gallery, or its images.

    Raises:
        UsageError: for what is no path.
    """
    if isinstance(images, str | PathLike):
        return _path(images, "images")
    listed = _listed(images, "images", "paths", ordered=False)
    return [_path(each, f"images[{place}]") for place, each in enumerate(listed)]


def _path(path: Any, what: str) -> Path:
    if not isinstance(path, str | PathLike):
        raise UsageError(f"{what} is {_named(path)}, not a path; a gallery is made of files.")
    return Path(path)


def _listed(items: Any, what: str, kind: str, *, ordered: bool) -> list[Any]:
    if isinstance(items, bytes | bytearray | memoryview) or not hasattr(items, "__iter__"):
        raise UsageError(f"{what} is {_named(items)}; give a list of {kind}.")
    if ordered and isinstance(items, AbstractSet) and not hasattr(items, "mapping"):  # the keys of a dict have an order
        raise UsageError(f"{what} is a set, which has no order; give a list of {kind}, as sorted({what}).")
    if isinstance(items, np.ndarray) and items.ndim == 0:
        raise UsageError(f"{what} is {_named(items)} without items; give a list of {kind}.")
    return list(items)


def _named(value: object) -> str:
    """`None`, or the type of a value; never its content."""
    return "None" if value is None else f"of type {type(value).__name__}"
