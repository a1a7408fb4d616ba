"""Which pairs of a reading are usable, by decoding every image in full."""

from collections.abc import Sequence
from pathlib import Path

from clip_core.data.pairs import Pair, Report, distinct_images, reason, sort_pairs
from clip_core.data.preprocess import load_image
from clip_core.errors import ImageError


def check_pairs(pairs: Sequence[Pair], *, sizes: dict[Path, tuple[int, int]] | None = None) -> Report:
    """`sizes`: filled with the upright width and height of every readable image, if given."""
    failures: dict[Path, str] = {}
    for path in distinct_images(pairs):
        try:
            size = load_image(path).size
        except ImageError as error:
            failures[path] = reason(error)
        else:
            if sizes is not None:
                sizes[path] = size
    return sort_pairs(pairs, failures)
