"""CLIP: two towers and a temperature (Radford et al. 2021, "Learning transferable visual models ...").

Shapes: B images, C captions, S image side, K kept patches, T tokens, D embedding.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clip_core.model.image_encoder import ImageEncoder
from clip_core.model.projection import ExternalEncoder
from clip_core.model.text_encoder import TextEncoder
from clip_core.model.timm_image import TimmImageEncoder
from clip_core.model.transformers_text import TransformersTextEncoder
from clip_core.network import ClipConfig, ExternalTower, ImageTower, TextTower, TimmTower, TransformersTower

ImageModule = ImageEncoder | TimmImageEncoder | ExternalEncoder
TextModule = TextEncoder | TransformersTextEncoder | ExternalEncoder

MAX_LOGIT_SCALE = 100.0
_MAX_WITH_BIAS = 1000.0  # the sigmoid loss, whose weights have a bias, was trained without a limit


class Embeddings(NamedTuple):
    """What one forward pass gives the loss; `image` or `text` is None where that tower had no input.

    image: (B, D) float32, L2-normalised. text: (C, D) float32, L2-normalised. logit_scale: () factor from cosine to
    logit. logit_bias: () added to the logits by the sigmoid loss; None without that loss.
    """

    image: Tensor | None
    text: Tensor | None
    logit_scale: Tensor
    logit_bias: Tensor | None


class CLIP(nn.Module):
    """Image and text embeddings in one space.

    `log_logit_scale` is the learnable log(1 / temperature). `logit_scale()` clamps it to [1, 100] as CLIP does
    (to [1, 1000] for weights with a logit bias). `logit_bias` is constant over all pairs, so it changes no ranking.
    """

    def __init__(self, config: ClipConfig, temperature: float = 0.07) -> None:
        super().__init__()
        self.config = config
        self.max_logit_scale = _MAX_WITH_BIAS if config.logit_bias else MAX_LOGIT_SCALE
        self.image = _image_tower(config.image, config.embed_dim)
        self.text = _text_tower(config.text, config.embed_dim)
        self.log_logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.logit_bias = nn.Parameter(torch.zeros(())) if config.logit_bias else None

    def forward(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor | Sequence[Tensor] | None,
        kept_patches: Tensor | None = None,
    ) -> Embeddings:
        """One pass through both towers, or through the one that has an input.

        Every training pass calls the module itself, never a tower, so that DDP and FSDP2 can wrap it.

        Args:
            pixel_values: normalised images, (B, 3, S, S), or features of an external encoder, (B, F) or (B, P, F).
            input_ids: int64 token ids, (C, T), or groups of them with lengths of their own, [(C_i, T_i), ...]; text
                embeddings are in the order of the groups. Or features of an external encoder, (C, F).
            kept_patches: int64 indices of the patches of each image that are used (patch dropout), (B, K).
        """
        image = None if pixel_values is None else self.image(pixel_values, kept_patches)
        text = None
        if input_ids is not None:
            groups = (input_ids,) if isinstance(input_ids, Tensor) else input_ids
            text = torch.cat([self.text(group) for group in groups])
        # A clone, since DDP takes a parameter that is itself an output for an unused one.
        bias = None if self.logit_bias is None else self.logit_bias.clone()
        return Embeddings(image, text, self.logit_scale(), bias)

    def encode_image(self, pixel_values: Tensor, kept_patches: Tensor | None = None) -> Tensor:
        """(B, 3, S, S) -> (B, D), L2-normalised, float32; for inference"""
        embeds: Tensor = self(pixel_values, None, kept_patches).image
        return embeds

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """(C, T) int64 -> (C, D), L2-normalised, float32; for inference"""
        embeds: Tensor = self(None, input_ids).text
        return embeds

    def logit_scale(self) -> Tensor:
        """The factor from cosine to logit, at least 1.  -> ()"""
        return self.log_logit_scale.clamp(0.0, math.log(self.max_logit_scale)).exp()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Clamp the stored value too: outside its range the clamp has no gradient, and it could never return."""
        self.log_logit_scale.clamp_(0.0, math.log(self.max_logit_scale))


def _image_tower(config: ImageTower | TimmTower | ExternalTower, embed_dim: int) -> ImageModule:
    if isinstance(config, ExternalTower):
        return ExternalEncoder(config, embed_dim)
    return TimmImageEncoder(config, embed_dim) if isinstance(config, TimmTower) else ImageEncoder(config, embed_dim)


def _text_tower(config: TextTower | TransformersTower | ExternalTower, embed_dim: int) -> TextModule:
    if isinstance(config, ExternalTower):
        return ExternalEncoder(config, embed_dim)
    if isinstance(config, TransformersTower):
        return TransformersTextEncoder(config, embed_dim)
    return TextEncoder(config, embed_dim)


def attach_encoders(model: CLIP) -> CLIP:
    """Load the external encoders of a network from their sources, for pixels and token ids; returns the network.

    Raises:
        CheckpointError: if one is gone, or is not the one that the projection head was trained on.
    """
    for tower in (model.image, model.text):
        if isinstance(tower, ExternalEncoder) and tower.encoder is None:
            from clip_core.model.encoders.resolve import load_encoder  # it reads CLIPs too, so it imports this module

            tower.attach(load_encoder(tower.config.encoder))
    return model


def uninitialised_clip(config: ClipConfig) -> CLIP:
    """A CLIP whose weights are uninitialised memory; assign all of them before use.

    The meta device would do the same, but its first use imports SymPy: 160 MB and a second or two.
    """
    with _SkipInit():
        return CLIP(config)


_INITIALISERS = frozenset({"normal_", "uniform_", "kaiming_uniform_", "fill_", "zero_"})  # of tensors and torch.nn.init


class _SkipInit(TorchFunctionMode):
    """Leaves tensors as they are where a call would initialise them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in _INITIALISERS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
