"""Attention pooling: one learned query gathers an image from its patches.

Shapes: B images, T tokens, W width, H heads, E = W / H.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.model.transformer import make_mlp
from clip_core.network import AttentionPooling


class AttentionPoolHead(nn.Module):
    """A learned query attends to all tokens; a residual MLP follows.  (B, T, W) -> (B, W)

    Source: Zhai et al. 2022, "Scaling Vision Transformers" (MAP head), itself from Lee et al. 2019, "Set Transformer".
    """

    def __init__(self, config: AttentionPooling, width: int, norm_eps: float) -> None:
        super().__init__()
        self.heads = config.heads
        self.probe = nn.Parameter(torch.randn(width) * width**-0.5)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = make_mlp(width, config.mlp_width, config.activation)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query(self.probe).view(self.heads, 1, -1)  # (H, 1, E)
        key, value = self.key_value(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, E)
        gathered = F.scaled_dot_product_attention(query.expand(key.shape[0], -1, -1, -1), key, value)  # (B, H, 1, E)
        pooled: Tensor = self.out(gathered.flatten(1))  # (B, W)
        embeds: Tensor = pooled + self.mlp(self.norm(pooled))
        return embeds
