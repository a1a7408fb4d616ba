"""What `clip-data check` measures of each image, in one decoding: content, perceptual hash, colours, light, sharpness.

Shapes: I distinct images.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_core.data.embedding_file import EmbeddingFile
from clip_core.data.near_duplicates import perceptual_hash
from clip_core.data.pairs import Pair, decoding_threads, reason
from clip_core.data.preprocess import load_reduced
from clip_core.data.progress import Progress, no_progress, run_interruptibly
from clip_core.errors import ImageError

# Thresholds, of an image reduced to 256 pixels; measured on three real sets (docs/data-check.md).
DARK = 64  # the 99th percentile of grey, of 255
BLURRED = 0.008  # mean square of the Laplacian over the variance of grey
BLANK = 2.0  # standard deviation of grey
TINY = 32  # the shorter side, pixels
ODD = 3.0  # the longer side over the shorter
SAME_COLOUR = 16  # the largest difference in a 4 x 4 grid of colours, of 255, of near duplicates

_SIDE = 256
_GRID = 4
FACTS = np.dtype(
    [
        ("readable", np.bool_),
        ("content", np.uint64, (2,)),  # 16 bytes of BLAKE2b of the file
        ("hash", np.uint64),
        ("colours", np.uint8, (_GRID * _GRID * 3,)),
        ("width", np.int32),
        ("height", np.int32),
        ("light", np.uint8),
        ("spread", np.float32),
        ("sharpness", np.float32),
    ]
)


@dataclass
class ImageFacts:
    """One row of `facts` (dtype FACTS, shape (I,), 90 bytes) for each image, and why some cannot be used.

    Where a model embedded images while they were read, `embedded` has the row of each in `embeddings`, (I,), or -1.
    """

    facts: NDArray[np.void]
    failures: dict[int, str] = field(default_factory=dict)
    embedded: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    embeddings: EmbeddingFile | None = None


class Measured(NamedTuple):
    """What was measured of images while their pairs were read; `firsts`: the first pair of each, (I,), rising."""

    firsts: NDArray[np.int64]
    images: ImageFacts

    @classmethod
    def joined(cls, first: "Measured", second: "Measured", before: int) -> "Measured":
        """Those of two lists, of which the first has `before` pairs."""
        images = len(first.firsts)
        embeddings = first.images.embeddings or second.images.embeddings
        rows = [
            part.images.embedded if part.images.embeddings else np.full(len(part.firsts), -1)
            for part in (first, second)
        ]
        failures = first.images.failures | {row + images: why for row, why in second.images.failures.items()}
        facts = np.concatenate([first.images.facts, second.images.facts])
        images_of_both = ImageFacts(facts, failures, np.concatenate(rows), embeddings)
        return cls(np.concatenate([first.firsts, second.firsts + before]), images_of_both)

    def of(self, firsts: NDArray[np.int64]) -> tuple[ImageFacts, NDArray[np.bool_]]:
        """The facts of images by the first pair of each, (I,), and which of them were measured, (I,)."""
        if np.array_equal(firsts, self.firsts):
            return self.images, np.ones(len(firsts), dtype=np.bool_)
        rows = np.searchsorted(self.firsts, firsts)
        known = np.append(self.firsts, -1)[rows] == firsts
        found = ImageFacts(np.zeros(len(firsts), dtype=FACTS))
        found.facts[known] = self.images.facts[rows[known]]
        if self.images.embeddings is not None:
            found.embedded, found.embeddings = np.full(len(firsts), -1), self.images.embeddings
            found.embedded[known] = self.images.embedded[rows[known]]
        failures = self.images.failures
        found.failures |= {
            int(row): failures[int(rows[row])] for row in np.flatnonzero(known) if int(rows[row]) in failures
        }
        return found, np.asarray(known)


NOTHING = Measured(np.empty(0, dtype=np.int64), ImageFacts(np.empty(0, dtype=FACTS)))


def measure_images(
    pairs: Sequence[Pair],
    firsts: NDArray[np.int64],
    workers: int | None = None,
    progress: Progress = no_progress,
    measured: Measured = NOTHING,
) -> ImageFacts:
    """Read and decode every image once, in threads.

    Args:
        pairs: all of the data set.
        firsts: for each image the place of its first pair, (I,).
        workers: decoding threads; None is one a core.
        progress: called with the images decoded so far, and all.
        measured: images that are not read again.
    Raises:
        KeyboardInterrupt: saying how many images were checked.
    """
    found, known = measured.of(firsts)
    left = np.flatnonzero(~known)
    threads, done = decoding_threads(workers), 0

    def look(row: int) -> int:
        try:
            found.facts[row] = image_row(pairs[int(firsts[row])].path)
        except ImageError as error:
            found.failures[row] = reason(error)
        return 1

    with ThreadPoolExecutor(threads) as pool:
        try:
            for count in run_interruptibly(pool, threads, look, map(int, left)):
                done += count
                progress(done, len(left))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{done:,} of {len(left):,} images checked; nothing is reported") from None
    return found


def image_row(path: str, content: bytes | None = None) -> tuple[object, ...]:
    """One row of FACTS of an image; `content` where it was read already.

    Raises:
        ImageError: if it cannot be decoded.
    """
    hashed = hashlib.blake2b(digest_size=16)
    image, (width, height) = load_reduced(path, _SIDE, hashed.update, content)
    image.thumbnail((_SIDE, _SIDE))
    grey = image.convert("L")
    values = np.asarray(grey, dtype=np.int32)
    brighter = np.cumsum(grey.histogram())
    colours = np.asarray(image.resize((_GRID, _GRID), Image.Resampling.BOX)).ravel()
    return (
        True,
        np.frombuffer(hashed.digest(), dtype=np.uint64),
        perceptual_hash(grey),
        colours,
        width,
        height,
        int(np.searchsorted(brighter, 0.99 * brighter[-1])),
        float(values.std()),
        _sharpness(values),
    )


def _sharpness(grey: NDArray[np.int32]) -> float:
    """Mean square of the Laplacian over the variance: independent of contrast; infinite where it says nothing."""
    variance = float(grey.var())
    if min(grey.shape) < 16 or variance < BLANK**2:
        return float("inf")
    inside = grey[1:-1, 1:-1]
    edges = 4 * inside - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(np.square(edges).mean()) / variance


def confirm_colours(facts: NDArray[np.void]) -> Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]:
    """Whether images that have nearly the same hash also have the same colours, and sides in the same ratio to 5 %."""
    ratios = facts["width"] / np.maximum(facts["height"], 1)

    def confirm(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        one, another = (facts["colours"][rows].astype(np.int16) for rows in (first, second))
        alike = np.abs(one - another).max(axis=1, initial=0) <= SAME_COLOUR
        return np.asarray(alike & (np.abs(ratios[first] / ratios[second] - 1) <= 0.05))

    return confirm
