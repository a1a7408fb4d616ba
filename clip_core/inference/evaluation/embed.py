"""Embeddings of a set's images and texts, computed in a stream and stored for the next evaluation.

Shapes: N images, T texts or classes, D embedding size.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clip_core.data.feature_cache import FeatureCache, content_key
from clip_core.data.progress import DecodeProgress
from clip_core.inference.clip import fill
from clip_core.inference.encoder import Encoder
from clip_core.inference.gallery import Gallery
from clip_core.scoring import FloatArray, class_prototypes

_TEXTS = 32  # that are encoded between two looks at Ctrl-C

# Texts whose embeddings tell one text tower from another: `About.identity` is of the image tower alone.
_FINGERPRINT = ["a photo of a cat", "two people walk in the rain", "a red square", "the map of a city, 1984"]


def embed_images(
    encoder: Encoder, images: Sequence[Path], index: Path | None, say: Callable[[str], None]
) -> tuple[Gallery, float | None]:
    """The images, embedded now or taken from the store; and how many were embedded in a second.

    Args:
        index: folder of the stored embeddings; None for one in the user's cache.
        say: takes a line of progress at a time, where there is no terminal.
    Raises:
        KeyboardInterrupt: saying how many images are embedded and kept.
    """
    place = None if index is None else index / encoder.about.identity.replace(":", "-")[:40]
    started = time.monotonic()
    with DecodeProgress(say, "embedded") as progress:
        gallery = Gallery.open(encoder, images, place, progress, lambda: say("waiting for another process."))
    seconds = time.monotonic() - started
    return gallery, gallery.embedded / seconds if gallery.embedded else None


def embed_texts(
    encoder: Encoder, texts: Sequence[str], templates: Sequence[str], index: Path | None, say: Callable[[str], None]
) -> FloatArray:
    """The prototype of each text: the mean of its prompts, normalised.  -> (T, D)

    Args:
        texts: class names, or with the one template `{}` captions.
        index, say: as in `embed_images`.
    """
    identity = hashlib.sha256(encoder.encode_texts(_FINGERPRINT).tobytes()).hexdigest()[:32]
    folder = None if index is None else index / f"texts-{identity}"
    cache = FeatureCache(f"texts {identity}", (encoder.about.embed_dim,), folder)
    keys = [content_key("\0".join([text, *templates]).encode("utf-8", "surrogateescape")) for text in texts]
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # similar lengths are encoded together

    def encode(places: Sequence[int]) -> FloatArray:
        names = [texts[order[place]] for place in places]
        prompts = [fill(template, name) for template in templates for name in names]
        embeds = [encoder.encode_texts(prompts[at : at + _TEXTS]) for at in range(0, len(prompts), _TEXTS)]
        return class_prototypes(np.concatenate(embeds), len(names))

    prototypes = np.empty((len(texts), encoder.about.embed_dim), np.float32)
    with DecodeProgress(say, "encoded", "text") as progress:
        prototypes[order] = cache.compute([keys[row] for row in order], encode, progress)
    return prototypes
