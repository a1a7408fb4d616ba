"""A tower of any CLIP that this project reads, as an encoder: published weights, or a run of ours."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import UsageError
from clip_core.model.checkpoint import LoadedModel, load_model
from clip_core.model.clip import ImageModule, TextModule
from clip_core.model.encoders.base import EncoderInfo, FrozenEncoder, Side, parameter_count
from clip_core.model.encoders.files import absolute, identity_of, licence_of


class ClipTower(FrozenEncoder):
    """The L2-normalised embedding of one tower."""

    def __init__(self, info: EncoderInfo, tower: ImageModule | TextModule, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(info, tokenizer)
        self.tower = tower
        self.frozen()

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.tower(x)
        return features

    def blocks(self) -> list[nn.Module]:
        return list(self.tower.blocks)


def load_clip_tower(
    name: str, path: Path, side: Side, *, image_size: int | None = None, context_length: int | None = None
) -> ClipTower:
    """One tower of a CLIP.

    Raises:
        CheckpointError, TokenizerError: as `load_model`.
        UsageError: for another image size or context than that of the weights.
    """
    loaded = load_model(path)
    config = loaded.config
    if image_size not in (None, config.image.image_size):
        raise UsageError(
            f"{name} is a CLIP for images of {config.image.image_size} pixels, and --encoder-image-size is "
            f"{image_size}; leave it out."
        )
    if context_length not in (None, config.text.context_length):
        raise UsageError(
            f"{name} is a CLIP with a context of {config.text.context_length} tokens, and --context-length is "
            f"{context_length}; leave it out."
        )
    tower = loaded.model.image if side == "image" else loaded.model.text
    info = _described(name, loaded, side, tower)
    return ClipTower(info, tower, loaded.tokenizer if side == "text" else None)


def _described(name: str, loaded: LoadedModel, side: Side, tower: ImageModule | TextModule) -> EncoderInfo:
    config, tokenizer = loaded.config, loaded.tokenizer
    settings: dict[str, Any] = {"side": side, "network": config.model_dump(mode="json")}
    facts: dict[str, Any] = {"preprocessing": config.preprocessing}
    if side == "text":
        facts = {
            "context_length": tokenizer.context_length,
            "end_token": tokenizer.end_token,
            "vocab_size": tokenizer.vocab_size,
            "pad_id": tokenizer.pad_id,
            "whole": tokenizer.pads_to_context,
        }
        settings |= facts
    blocks = len(tower.blocks)
    kind = f"Vision Transformer of {blocks} blocks" if side == "image" else f"text Transformer of {blocks} blocks"
    return EncoderInfo(
        side=side,
        source="clip",
        name=absolute(name),
        architecture=f"CLIP {side} tower, {kind}",
        identity=identity_of(loaded.files, settings),
        parameters=parameter_count(tower),
        licence=licence_of(loaded.folder),
        feature_size=config.embed_dim,
        **facts,
    )
