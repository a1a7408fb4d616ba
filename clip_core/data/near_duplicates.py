"""Near duplicates among millions of images: 64-bit perceptual hashes, searched by multi-index hashing.

Shapes: N images, E pairs of images.
"""

from collections.abc import Callable
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Hashes = NDArray[np.uint64]
IntArray = NDArray[np.int64]
Confirm = Callable[[IntArray, IntArray], NDArray[np.bool_]]
PixelSource = Callable[[IntArray], NDArray[np.uint8]]

RADIUS = 4  # bits; half the size and JPEG quality 60 changed at most 4 in 750 images of three real sets
_MARGIN = 20.0  # above the median: frequencies that an image has not are 0, not noise of a random sign
_SIDE, _LOW = 32, 8
_LONGEST = 2000  # neighbours compared within one bucket: bounds the work where most images are nearly alike

_COLOURS = 8  # side of the squares whose colours are compared
_ALIKE = 6.0  # of 255, mean difference of the colours below which images look alike
_AT_ONCE = 256

_GRID = np.arange(_SIDE)
_COSINES = np.sqrt(2 / _SIDE) * np.cos(np.pi * (2 * _GRID[None] + 1) * np.arange(_LOW)[:, None] / (2 * _SIDE))


class NearPairs(NamedTuple):
    """Pairs of rows, int64 (E, 2), the lower first; `complete` is False where a bucket was too full."""

    pairs: IntArray
    complete: bool


def perceptual_hash(grey: Image.Image) -> int:
    """64 bits: which of the 8 x 8 lowest frequencies of a grey image are above their median.

    Source: pHash (Zauner 2010), with a margin above the median.
    """
    pixels = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    low = (_COSINES @ pixels @ _COSINES.T).ravel()
    return int.from_bytes(np.packbits(low > np.median(low[1:]) + _MARGIN).tobytes(), "big")


def hamming(first: Hashes, second: Hashes) -> IntArray:
    """Bits in which hashes differ, element by element."""
    bits = first ^ second
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return ((bits * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)


def near_pairs(hashes: Hashes, radius: int = RADIUS, confirm: Confirm | None = None) -> NearPairs:
    """All pairs of hashes that differ in at most `radius` bits.

    A hash is cut into radius + 2 chunks: two of them are equal in any such pair, so only hashes that share two chunks
    are compared, which are few: one in four million where the bits are random.

    Args:
        hashes: uint64 (N,).
        radius: bits.
        confirm: keeps those of the pairs (rows (E,) and (E,)) that are meant.
    Source: multi-index hashing (Norouzi, Punjani & Fleet 2012).
    """
    count, found, complete = len(hashes), [np.empty(0, dtype=np.int64)], True
    ends = np.linspace(0, 64, radius + 3).astype(int)
    chunks = [(hashes >> np.uint64(start)) & np.uint64((1 << int(end - start)) - 1) for start, end in pairwise(ends)]
    for one, another in combinations(chunks, 2):
        key = (one << np.uint64(32)) | another
        order = np.argsort(key)
        key, places = key[order], np.arange(count)
        for step in range(1, count):
            places = places[places < count - step]
            places = places[key[places] == key[places + step]]
            if not len(places):
                break
            if step > _LONGEST:
                complete = False
                break
            rows = np.sort(np.stack([order[places], order[places + step]]), axis=0)
            near = rows[:, hamming(hashes[rows[0]], hashes[rows[1]]) <= radius]
            if confirm is not None:
                near = near[:, confirm(near[0], near[1])]
            found.append(near[0] * count + near[1])
        found = [np.unique(np.concatenate(found))]
    return NearPairs(np.stack(np.divmod(found[0], max(count, 1)), axis=1), complete)


def groups(count: int, pairs: IntArray) -> IntArray:
    """For each of `count` rows the lowest row that pairs (E, 2) connect it with, int64 (count,)."""
    labels = np.arange(count)
    while True:
        ends = labels[pairs]
        merged = labels.copy()
        np.minimum.at(merged, ends.max(axis=1), ends.min(axis=1))
        while (shorter := merged[merged]).tobytes() != merged.tobytes():
            merged = shorter
        if np.array_equal(merged, labels):
            return labels
        labels = merged


class Leaked(NamedTuple):
    """Second images that look nearly like a first one: rows (E, 2), and how many of each were compared."""

    pairs: IntArray
    compared: tuple[int, int]


def leaked(first: PixelSource, second: PixelSource, counts: tuple[int, int], most: int = 5_000) -> Leaked:
    """Images of the second set that look nearly like one of the first, by hash and by 8 x 8 colours.

    Args:
        first, second: give uint8 squares of rows, (B,) -> (B, S, S, 3).
        counts: of their images.
        most: images of the first set that are compared, spread over it, and a fifth as many of the second.
    """
    rows = [
        np.linspace(0, count - 1, min(count, limit)).astype(np.int64)
        for count, limit in zip(counts, (most, most // 5), strict=True)
    ]
    looked = [_looks(source, chosen) for source, chosen in zip((first, second), rows, strict=True)]
    hashes, colours = (np.concatenate([one[part] for one in looked]) for part in (0, 1))
    border = len(rows[0])
    found = near_pairs(hashes).pairs
    found = found[(found[:, 0] < border) & (found[:, 1] >= border)]
    apart = np.abs(colours[found[:, 0]].astype(np.int16) - colours[found[:, 1]]).mean(axis=1)
    found = found[apart < _ALIKE]
    pairs = np.stack([rows[0][found[:, 0]], rows[1][found[:, 1] - border]], axis=1)
    return Leaked(pairs, (len(rows[0]), len(rows[1])))


def _looks(source: PixelSource, rows: IntArray) -> tuple[Hashes, NDArray[np.uint8]]:
    """The hash of each image, (N,), and its colours, (N, 192)."""
    hashes, colours = np.empty(len(rows), np.uint64), np.empty((len(rows), _COLOURS**2 * 3), np.uint8)
    for start in range(0, len(rows), _AT_ONCE):
        for place, pixels in enumerate(source(rows[start : start + _AT_ONCE]), start):
            image = Image.fromarray(pixels)
            hashes[place] = perceptual_hash(image.convert("L"))
            colours[place] = np.asarray(image.resize((_COLOURS, _COLOURS), Image.Resampling.BOX)).ravel()
    return hashes, colours
