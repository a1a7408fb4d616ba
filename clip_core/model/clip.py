"""CLIP: two towers and a temperature (Radford et al. 2021, "Learning transferable visual models ...").

Shapes: B pairs, S image side, T tokens, D embedding.
"""

import math

import torch
from torch import Tensor, nn

from clip_core.model.image_encoder import ImageEncoder
from clip_core.model.text_encoder import TextEncoder
from clip_core.network import ClipConfig

MAX_LOGIT_SCALE = 100.0
_MAX_WITH_BIAS = 1000.0  # the sigmoid loss, whose weights have a bias, was trained without a limit


class CLIP(nn.Module):
    """Images and captions in one space.

    `log_logit_scale` is the learnable log of 1 / temperature; it is used clamped, so that the logit scale is never
    above 100 (CLIP's own limit; weights with a logit bias may go beyond) nor below 1. `logit_bias` is what the sigmoid
    loss adds to the logits; which caption fits an image best does not depend on it.
    """

    def __init__(self, config: ClipConfig, temperature: float = 0.07) -> None:
        super().__init__()
        self.config = config
        self.max_logit_scale = _MAX_WITH_BIAS if config.logit_bias else MAX_LOGIT_SCALE
        self.image = ImageEncoder(config.image, config.embed_dim)
        self.text = TextEncoder(config.text, config.embed_dim)
        self.log_logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.logit_bias = nn.Parameter(torch.zeros(())) if config.logit_bias else None

    def encode_image(self, pixel_values: Tensor, kept: Tensor | None = None) -> Tensor:
        """(B, 3, S, S) -> (B, D), unit length, float32; of the patches `kept` alone, (B, K), where given"""
        embeds: Tensor = self.image(pixel_values, kept)
        return embeds

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """(B, T) int64 -> (B, D), unit length, float32"""
        embeds: Tensor = self.text(input_ids)
        return embeds

    def logit_scale(self) -> Tensor:
        """The factor from cosine to logit, at least 1."""
        return self.log_logit_scale.clamp(0.0, math.log(self.max_logit_scale)).exp()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Bring the stored temperature back inside its range, so that it can leave the border again."""
        self.log_logit_scale.clamp_(0.0, math.log(self.max_logit_scale))

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Both embeddings.  (B, 3, S, S), (B, T) -> (B, D), (B, D)"""
        return self.encode_image(pixel_values), self.encode_text(input_ids)
