"""The cosine above which an image and a text match, chosen on validation pairs: a raw cosine says little by itself."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from clip_core.data.preprocess import Pixels, load_image, resize_and_crop
from clip_core.errors import ImageError
from clip_core.network import Frozen, Preprocessing
from clip_core.run.records import ValidationPair
from clip_core.scoring import FloatArray, best_threshold, similarity
from clip_core.text import normalise_caption, plural

if TYPE_CHECKING:
    from clip_core.inference.encoder import Encoder

MOST_PAIRS = 1000
LEAST_PAIRS = 10  # fewer say nothing
NONE_OF_THESE = "none of these"
HOW = "highest F1 over matching and non-matching pairs, both kinds weighted equally"

_BATCH = 64


class Threshold(Frozen):
    """A cosine, and how well it tells matching pairs from others.

    `precision`, `recall`: fractions on the pairs that it was chosen on, if matching and other pairs are equally many.
    `pairs`: matching pairs. `others`: combinations of an image and a caption that do not match.
    """

    value: Annotated[float, Field(ge=-1.01, le=1.01)]
    precision: Annotated[float, Field(ge=0, le=1)]
    recall: Annotated[float, Field(ge=0, le=1)]
    pairs: Annotated[int, Field(ge=1)]
    others: Annotated[int, Field(ge=1)]
    how: str = HOW

    @property
    def summary(self) -> str:
        """`threshold +0.2412: precision 93.1%, recall 91.0% on 200 validation pairs`"""
        return (
            f"threshold {self.value:+.4f}: precision {self.precision:.1%}, recall {self.recall:.1%} "
            f"on {plural(self.pairs, 'validation pair')}"
        )


def calibrate(encoder: "Encoder", pairs: Sequence[ValidationPair]) -> Threshold | None:
    """The threshold with the best F1 on validation pairs; None where fewer than ten of them can be read.

    An image and a caption match when a pair has both; every other combination of them does not.

    Args:
        pairs: of a run; at most 1,000, spread over them, are used.
    """
    step = max(1.0, len(pairs) / MOST_PAIRS)
    used = [pairs[int(n * step)] for n in range(min(len(pairs), MOST_PAIRS))]
    files = list(dict.fromkeys(pair.image for pair in used))
    rows, images = _embed(encoder, files)
    captions = list({normalise_caption(pair.caption): pair.caption for pair in used if pair.image in rows}.items())
    columns = {key: column for column, (key, _) in enumerate(captions)}
    matching = np.zeros((len(images), len(captions)), dtype=bool)
    for pair in used:
        if pair.image in rows:
            matching[rows[pair.image], columns[normalise_caption(pair.caption)]] = True
    count = int(matching.sum())
    if count < LEAST_PAIRS or count == matching.size:
        return None
    cosines = similarity(images, encoder.encode_texts([caption for _, caption in captions]))
    value, precision, recall = best_threshold(cosines[matching], cosines[~matching])
    return Threshold(value=value, precision=precision, recall=recall, pairs=count, others=matching.size - count)


def _embed(encoder: "Encoder", files: Sequence[str]) -> tuple[dict[str, int], FloatArray]:
    """The row of each file that can be read, and the embeddings (N, D)."""
    rows: dict[str, int] = {}
    parts: list[FloatArray] = [np.empty((0, encoder.about.embed_dim), np.float32)]
    preprocessing = encoder.about.preprocessing
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            pixels = list(pool.map(lambda file: _read(file, preprocessing), batch))
            good = [(file, each) for file, each in zip(batch, pixels, strict=True) if each is not None]
            if good:
                rows |= {file: len(rows) + n for n, (file, _) in enumerate(good)}
                parts.append(encoder.encode_pixels(np.stack([each for _, each in good])))
    return rows, np.concatenate(parts)


def _read(file: str, preprocessing: Preprocessing) -> Pixels | None:
    try:
        return resize_and_crop(load_image(Path(file)), preprocessing)
    except ImageError:
        return None
