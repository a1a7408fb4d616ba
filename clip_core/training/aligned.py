"""Pretrained encoders that are aligned: loaded, described for the network, features computed, heads initialised.

The encoders of both sides, or of one with the other trained from scratch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from clip_core.config import EncoderConfig, TrainConfig
from clip_core.data.dataset import Data
from clip_core.data.tokenizer import Captions, Tokenizer
from clip_core.errors import UsageError
from clip_core.model.clip import CLIP
from clip_core.model.encoders.base import FrozenEncoder
from clip_core.model.encoders.files import absolute
from clip_core.model.encoders.resolve import load_encoder, load_image_encoder, load_text_encoder
from clip_core.model.projection import ExternalEncoder
from clip_core.network import ClipConfig, ExternalTower, Head, Side
from clip_core.presets import FEW_PAIRS
from clip_core.text import printable
from clip_core.training.evaluate import ValidationSet
from clip_core.training.frozen_features import CaptionFeatures, FeatureStore, image_features

# Of docs/benchmarks.md, with small encoders: MobileNetV3-small and MiniLM-L6.
_REACHED = "on 1,386 emoji recall@5 63% after a minute, against 49% from scratch after ten"
EMBED_DIM = 512
HEAD_WIDTH = 2048
HEAD_DROPOUT = 0.5


@dataclass(frozen=True)
class Encoders:
    """The pretrained encoders of a run; None for a side that is trained from scratch."""

    image: FrozenEncoder | None
    text: FrozenEncoder | None

    @property
    def both(self) -> tuple[FrozenEncoder, ...]:
        return tuple(encoder for encoder in (self.image, self.text) if encoder is not None)


def find_encoders(config: TrainConfig, network: ClipConfig | None) -> Encoders | None:
    """The encoders of --image-encoder and --text-encoder, or those that the network of a resumed run describes.

    None where there are none, or where their weights belong to the network, which is then fine-tuned.

    Raises:
        ClipError: if one is missing, damaged, unsupported, or changed since the run began.
    """
    given = config.encoders
    if network is not None:
        frozen = [tower for tower in at_their_places(network, given).external if not tower.unfrozen]
        image, text = (
            next((load_encoder(tower.encoder) for tower in frozen if tower.encoder.side == side), None)
            for side in ("image", "text")
        )
        return Encoders(image, text) if frozen else None
    if not given.given:
        return None
    image = text = None
    if given.image_encoder is not None:
        how = given.image_features or "pooled"
        image = load_image_encoder(
            given.image_encoder,
            features="patches" if how == "mean" else how,
            image_size=given.encoder_image_size,
            preprocessing=given.encoder_preprocessing,
        )
    if given.text_encoder is not None:
        length = config.data.context_length
        default = type(config.data).model_fields["context_length"].default
        text = load_text_encoder(given.text_encoder, context_length=None if length == default else length)
    return Encoders(image, text)


def at_their_places(network: ClipConfig, config: EncoderConfig) -> ClipConfig:
    """The network of a run with the encoders' names as they were given last: a resumed run may have moved them.

    Raises:
        UsageError: if an encoder is given and the run has none on that side.
    """
    sides: tuple[tuple[Side, str | None], ...] = (("image", config.image_encoder), ("text", config.text_encoder))
    for side, name in sides:
        if name is None:
            continue
        if all(tower.encoder.side != side for tower in network.external):
            raise UsageError(f"--{side}-encoder: this run has no pretrained {side} encoder; leave it out.")
        network = network.with_encoder(side, absolute(name))
    return network


def say_encoders(encoders: Encoders, config: EncoderConfig, say: Callable[[str], None]) -> None:
    """One line an encoder: what it is, its size, its licence; then what was assumed."""
    for encoder in encoders.both:
        info = encoder.info
        typed = config.image_encoder if info.side == "image" else config.text_encoder
        licence = f"licence {info.licence}" if info.licence else "no licence named"
        say(
            printable(
                f"{info.side} encoder {typed or info.name}: {info.architecture}, {info.parameters:,} parameters, "
                f"frozen, {info.feature_size} features, {licence}"
            )
        )
        for note in info.notes:
            say(printable(f"  {note}"))


def alternative(config: TrainConfig, pairs: int) -> str | None:
    """What aligning pretrained encoders reaches, and the flags for it, where few pairs are trained on from scratch."""
    if pairs >= FEW_PAIRS or config.tune.init is not None or config.encoders.given or config.data.create_synthetic:
        return None
    return (
        f"fewer than {FEW_PAIRS:,} pairs: heads on pretrained encoders reach more in less time ({_REACHED}); "
        "add --image-encoder timm:vit_small_patch14_dinov2.lvd142m "
        "--text-encoder sentence-transformers/all-MiniLM-L6-v2"
    )


def with_encoders(network: ClipConfig, encoders: Encoders, config: EncoderConfig) -> ClipConfig:
    """The network with external towers in place of its own, where there are encoders."""
    head = Head(
        kind=config.head or "residual",
        hidden=config.head_width or HEAD_WIDTH,
        dropout=HEAD_DROPOUT if config.head_dropout is None else config.head_dropout,
        normalise=config.normalise_features,
    )
    changes: dict[str, object] = {"embed_dim": config.embed_dim or EMBED_DIM}
    if encoders.image is not None:
        info = encoders.image.info
        pooled = head.model_copy(update={"pool": config.image_features == "patches"})
        changes |= {"image": ExternalTower(encoder=info, head=pooled), "preprocessing": info.preprocessing}
    if encoders.text is not None:
        changes["text"] = ExternalTower(encoder=encoders.text.info, head=head)
    return network.model_copy(update=changes)


def compute_features(
    encoders: Encoders,
    data: Data,
    tokenizer: Tokenizer,
    second: ValidationSet | None,
    network: ClipConfig,
    *,
    views: int,
    device: str,
    say: Callable[[str], None],
) -> tuple[Data, Tokenizer | CaptionFeatures, ValidationSet | None]:
    """Features in place of images and of captions, where their encoder is frozen: computed once, kept in a cache.

    Args:
        second: the second validation set, if there is one.
        network: whose heads take the features.
        views: of each training image; the first is the image itself.
    """
    where = torch.device(device)
    captions: Tokenizer | CaptionFeatures = tokenizer
    if encoders.text is not None:
        captions = CaptionFeatures(encoders.text.to(where), tokenizer, where, say)
        captions.encode([*data.train.captions, *data.val.captions, *(data.classes or [])])
    stores = [data.train_store, data.val_store, *([second.store] if second else [])]
    if encoders.image is not None:
        stores = list(
            image_features(
                encoders.image,
                stores,
                where,
                say,
                views=views,
                patches=isinstance(network.image, ExternalTower) and network.image.head.pool,
            )
        )
    data = replace(data, train_store=stores[0], val_store=stores[1])
    if second is not None:
        second = replace(second, store=stores[2], tokenizer=captions)
    return data, captions, second


def initialise_heads(model: CLIP, encoders: Encoders, data: Data, captions: Captions, *, fit: bool) -> None:
    """Attach the encoders; `fit`: give each new head the statistics of the training features."""
    for tower, encoder in ((model.image, encoders.image), (model.text, encoders.text)):
        if isinstance(tower, ExternalEncoder) and encoder is not None:
            tower.attach(encoder)
    if not fit:
        return
    if isinstance(data.train_store, FeatureStore) and isinstance(model.image, ExternalEncoder):
        model.image.head.fit_statistics(torch.from_numpy(np.asarray(data.train_store.features[0])))
    if isinstance(captions, CaptionFeatures) and isinstance(model.text, ExternalEncoder):
        model.text.head.fit_statistics(torch.from_numpy(captions.encode(data.train.captions)))
