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
from clip_core.text import normalise_caption
from export.parity import PairSamples, Samples

Item = TypeVar("Item")

MOST = 40  # images, and captions
MOST_PAIRS = 300
_CAPTIONS = ("a photo of a dog", "a red circle", "two people on a beach at sunset", "an emoji")


def find_samples(loaded: LoadedModel, images: Path | None) -> Samples:
    """Up to 40 images and 40 distinct captions, and up to 300 pairs for recall@1.

    Args:
        images: a folder of images, whose captions are unknown; None: the run's validation images.
    Raises:
        DataError: if no image can be read.
    """
    pairs = validation_pairs(loaded)
    captions = [pair.caption for pair in pairs] or list(trained_classes(loaded) or _CAPTIONS)
    pixels = list(_readable(sample_images(loaded, images), loaded.config.preprocessing))
    if not pixels:
        where = f"in {images}" if images else f"in the validation set of {loaded.run or loaded.folder}"
        raise DataError(f"no readable image {where} to measure parity on; name a folder with --images.")
    pair_samples = (
        None if images is not None else _pair_samples(_spread(pairs, MOST_PAIRS), loaded.config.preprocessing)
    )
    distinct = _spread(list(dict.fromkeys(captions)))
    return Samples(normalise(np.stack(pixels), loaded.config.preprocessing), distinct, pair_samples)


def _pair_samples(pairs: list[ValidationPair], preprocessing: Preprocessing) -> PairSamples | None:
    """The pairs whose images can be read; equal images and captions are one row each."""
    pixels: dict[str, tuple[int, PixelArray]] = {}
    captions: dict[str, tuple[int, str]] = {}
    rows = []
    for pair in pairs:
        if pair.image not in pixels:
            try:
                pixels[pair.image] = len(pixels), read_pixels(Path(pair.image), preprocessing)
            except ImageError:
                continue
        caption = captions.setdefault(normalise_caption(pair.caption), (len(captions), pair.caption))
        rows.append((pixels[pair.image][0], caption[0]))
    if not rows:
        return None
    image_rows, caption_rows = np.array(rows, dtype=np.int64).T
    values = normalise(np.stack([each for _, each in pixels.values()]), preprocessing)
    return PairSamples(values, [caption for _, caption in captions.values()], image_rows, caption_rows)


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


def _spread(items: list[Item], most: int = MOST) -> list[Item]:
    """At most so many of the items, evenly over the list."""
    step = max(1, len(items) / most)
    return [items[int(i * step)] for i in range(min(most, len(items)))]
