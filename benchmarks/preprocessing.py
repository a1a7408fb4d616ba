"""Is an image prepared as open_clip prepares it? Every image of a set, through both, compared value by value.

    python -m benchmarks.preprocessing SET_FOLDER [SET_FOLDER ...]

open_clip gets the image as Pillow opens it; ours is read as `load_image` reads it: turned as its EXIF says, laid on
white where it is transparent. Images for which that makes a difference are counted apart, as `read otherwise`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
from PIL import Image

from benchmarks.train_run import header, row
from clip_core.data.preprocess import load_image, normalise, resize_and_crop
from clip_core.network import Preprocessing

SIDE = 224
KINDS = (("shortest", "bicubic"), ("shortest", "bilinear"), ("longest", "bicubic"), ("squash", "bicubic"))
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class Difference(NamedTuple):
    """Of one image: the largest, in 8-bit levels and in normalised values; and whether both read the same pixels."""

    levels: int
    values: float
    read_alike: bool


def compare(path: Path) -> Iterator[Difference]:
    """One Difference for each of KINDS."""
    with Image.open(path) as opened:
        opened.load()
        theirs, ours = opened, load_image(path)
        same_size = theirs.size == ours.size
        read_alike = same_size and np.array_equal(np.asarray(theirs.convert("RGB")), np.asarray(ours))
        for resize_mode, interpolation in KINDS:
            prepared = Preprocessing(image_size=SIDE, resize_mode=resize_mode, interpolation=interpolation)
            transform = open_clip.image_transform(
                SIDE, is_train=False, resize_mode=resize_mode, interpolation=interpolation
            )
            expected = theirs
            for step in transform.transforms[:-2]:  # all but the steps to a tensor and to normal values
                expected = step(expected)
            pixels = resize_and_crop(ours, prepared)
            levels = np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).max()
            values = np.abs(normalise(pixels[None], prepared)[0] - transform(theirs).numpy()).max()
            yield Difference(int(levels), float(values), read_alike)


def main(folders: list[Path]) -> None:
    print(header("set", "resize", "images", "read otherwise", "identical", "largest 8-bit difference", "largest float"))
    for folder in folders:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
        found = [list(compare(path)) for path in paths]
        for kind, differences in zip(KINDS, zip(*found, strict=True), strict=True):
            alike = [difference for difference in differences if difference.read_alike]
            identical = sum(difference.levels == 0 for difference in alike) / max(1, len(alike))
            print(
                row(
                    folder.name,
                    ", ".join(kind),
                    f"{len(differences):,}",
                    f"{len(differences) - len(alike):,}",
                    f"{identical:.2%}",
                    f"{max((difference.levels for difference in alike), default=0)}",
                    f"{max((difference.values for difference in alike), default=0.0):.1e}",
                ),
                flush=True,
            )


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
