"""The images and captions that parity is measured on: the run's validation pairs, or a folder of images."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from clip_core.data.preprocess import normalise
from clip_core.errors import DataError, ImageError
from clip_core.inference.encoder import PixelArray, read_pixels
from clip_core.inference.gallery_images import list_images
from clip_core.inference.torch_encoder import trained_classes
from clip_core.model.checkpoint import LoadedModel
from clip_core.network import Preprocessing
from clip_core.run.paths import RunPaths
from clip_core.run.records import ValidationPair, ValidationPairs
from export.parity import Samples

Item = TypeVar("Item")

MOST = 40  # images, and captions
_CAPTIONS = ("a photo of a dog", "a red circle", "two people on a beach at sunset", "an emoji")


def find_samples(loaded: LoadedModel, images: Path | None) -> Samples:
    """Up to 40 images and 40 distinct captions.

    Args:
        images: a folder of images; None: the run's validation images.
    Raises:
        DataError: if no image can be read.
    """
    pairs = validation_pairs(loaded)
    captions = [pair.caption for pair in pairs] or list(trained_classes(loaded) or _CAPTIONS)
    pixels = list(_readable(sample_images(loaded, images), loaded.config.preprocessing))
    if not pixels:
        where = f"in {images}" if images else f"in the validation set of {loaded.run or loaded.folder}"
        raise DataError(f"no readable image {where} to measure parity on; name a folder with --images.")
    return Samples(normalise(np.stack(pixels), loaded.config.preprocessing), _spread(list(dict.fromkeys(captions))))


def sample_images(loaded: LoadedModel, images: Path | None) -> list[Path]:
    """The files of up to 40 images, from the folder `images` or the run's validation set; some may be unreadable."""
    if images is not None:
        return _spread(list_images(images))
    pairs = validation_pairs(loaded)
    return _spread([Path(name) for name in dict.fromkeys(pair.image for pair in pairs)])


def validation_pairs(loaded: LoadedModel) -> list[ValidationPair]:
    """The validation pairs of the model's run; none where it has no run."""
    found = ValidationPairs.find(RunPaths(loaded.run).validation) if loaded.run else None
    return found.pairs if found else []


def _readable(images: list[Path], preprocessing: Preprocessing) -> Iterator[PixelArray]:
    for path in images:
        try:
            yield read_pixels(path, preprocessing)
        except ImageError:
            continue


def _spread(items: list[Item]) -> list[Item]:
    """At most 40 of the items, evenly over the list."""
    step = max(1, len(items) / MOST)
    return [items[int(i * step)] for i in range(min(MOST, len(items)))]
