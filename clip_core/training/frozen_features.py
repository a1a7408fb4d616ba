"""Features of frozen encoders in place of pixels and token ids: computed once, then read by every step.

Shapes: N images of a store, B asked for, V views, C captions, F features (or P, F for patches).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clip_core.data.feature_cache import FeatureCache, content_key
from clip_core.data.progress import DecodeProgress, Progress
from clip_core.data.store import Images
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import CheckpointError
from clip_core.model.encoders.base import FrozenEncoder
from clip_core.network import Preprocessing
from clip_core.scoring import FloatArray
from clip_core.text import printable
from clip_core.training.image_augmentation import random_crop, to_pixel_values

IntArray = NDArray[np.int64]
_READ = 256  # decoded images that are hashed at a time


@dataclass(frozen=True)
class FeatureStore:
    """The features of a store's images; row i belongs to `paths[i]`. Stands where an ImageStore would.

    `features`: float32 (V, N, F); view 0 is the image itself, the others are random crops of it.
    """

    paths: list[Path]
    preprocessing: Preprocessing
    features: FloatArray

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def views(self) -> int:
        return len(self.features)

    def get(self, rows: IntArray, views: IntArray | None = None) -> FloatArray:
        """Features of these rows, of view 0 or of the given one of each.  (B), (B) -> (B, F)"""
        chosen: FloatArray = self.features[0 if views is None else views, rows]
        return chosen


class CaptionFeatures:
    """Captions as features of a frozen text encoder. Stands where a tokenizer would turn them into ids."""

    def __init__(
        self, encoder: FrozenEncoder, tokenizer: Tokenizer, device: torch.device, say: Callable[[str], None]
    ) -> None:
        self.encoder, self.tokenizer, self._device, self._say = encoder, tokenizer, device, say
        self._cache = FeatureCache(encoder.info.identity, (encoder.info.feature_size,))
        self._known: dict[str, FloatArray] = {}

    def encode(self, captions: list[str]) -> FloatArray:
        """float32 (C, F), in the order of the captions; each distinct caption is encoded once, also over all runs."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        if new:
            with DecodeProgress(self._say, "encoded", "caption") as progress:
                self._known |= dict(zip(new, self.at(self._stored(new, progress)), strict=True))
        return np.stack([self._known[caption] for caption in captions])

    def stored(self, captions: Sequence[str], progress: Progress) -> IntArray:
        """The rows of their features in the cache, from which `at` reads them: nothing is held in memory.  -> (C,)"""
        distinct = list(dict.fromkeys(captions))
        rows = dict(zip(distinct, self._stored(distinct, progress).tolist(), strict=True))
        return np.array([rows[caption] for caption in captions])

    def at(self, rows: IntArray) -> FloatArray:
        """Features, by rows of the cache.  (C,) -> float32 (C, F)"""
        return self._cache.at(rows)

    @property
    def row_bytes(self) -> int:
        """Bytes of the features of a caption."""
        return 4 * self.encoder.info.feature_size

    def _stored(self, captions: Sequence[str], progress: Progress) -> IntArray:
        ids = self.tokenizer.encode(list(captions))
        pad = self.tokenizer.pad_id
        rows = [_trimmed(row, pad) for row in ids]
        keys = [content_key(row.astype(np.int32)) for row in rows]
        by_length = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        order = {place: number for number, place in enumerate(by_length)}

        @torch.inference_mode()
        def encode(places: Sequence[int]) -> FloatArray:
            chosen = ids[[by_length[place] for place in places]]
            if not self.tokenizer.pads_to_context:
                chosen = chosen[:, : max(len(rows[by_length[place]]) for place in places)]
            return _array(self.encoder, self.encoder(torch.from_numpy(chosen).to(self._device)))

        stored = self._cache.rows([keys[place] for place in by_length], encode, progress)
        return stored[[order[place] for place in range(len(rows))]]


def _trimmed(row: IntArray, pad: int) -> IntArray:
    """Token ids without the padding at their end, so that a caption's key does not depend on its neighbours."""
    real = np.flatnonzero(row != pad)
    return row[: real[-1] + 1] if len(real) else row[:1]


def image_features(
    encoder: FrozenEncoder,
    stores: Sequence[Images],
    device: torch.device,
    say: Callable[[str], None],
    *,
    views: int = 1,
    patches: bool = False,
) -> list[FeatureStore]:
    """The features of every image of these stores; those that an earlier run computed are read from the cache.

    Args:
        views: V of the first store; the others have view 0 alone.
        patches: the features of every patch, in place of one vector an image.
    """
    preprocessing = stores[0].preprocessing
    encoder.to(device)
    run = encoder.token_features if patches else encoder
    with torch.inference_mode():
        side = preprocessing.image_size
        shape = tuple(run(torch.zeros(1, 3, side, side, device=device)).shape[1:])
    cache = FeatureCache(f"{encoder.info.identity} {preprocessing.model_dump_json()} {patches}", shape)
    found = []
    for number, store in enumerate(stores):
        content = _keys(store)
        per_view = []
        for view in range(views if number == 0 else 1):
            keys = content if view == 0 else [content_key(key + view.to_bytes(4, "big")) for key in content]

            @torch.inference_mode()
            def encode(
                places: Sequence[int], store: Images = store, keys: list[bytes] = keys, view: int = view
            ) -> FloatArray:
                images = torch.from_numpy(store.get(np.array(places))).to(device)
                pixel_values = to_pixel_values(images, preprocessing)
                if view:
                    seeds = [int.from_bytes(keys[place][:7], "big") for place in places]
                    pixel_values = torch.cat(
                        [
                            random_crop(image[None], torch.Generator().manual_seed(seed))
                            for image, seed in zip(pixel_values, seeds, strict=True)
                        ]
                    )
                return _array(encoder, run(pixel_values))

            with DecodeProgress(say, "encoded") as progress:
                per_view.append(cache.compute(keys, encode, progress))
        features = per_view[0][None] if len(per_view) == 1 else np.stack(per_view)
        found.append(FeatureStore(store.paths, preprocessing, features))
    return found


def _keys(store: Images) -> list[bytes]:
    """A key of each image: the pixels that the encoder sees."""
    keys: list[bytes] = []
    for start in range(0, len(store), _READ):
        keys += [content_key(pixels) for pixels in store.get(np.arange(start, min(start + _READ, len(store))))]
    return keys


def _array(encoder: FrozenEncoder, features: torch.Tensor) -> FloatArray:
    """Raises: CheckpointError: if a feature is not finite."""
    array: FloatArray = features.float().cpu().numpy()
    if not np.isfinite(array).all():
        raise CheckpointError(
            f"the {encoder.info.side} encoder {printable(encoder.info.name)} gives features that are not finite; "
            "its weights are damaged, or overflow: use other weights."
        )
    return array
