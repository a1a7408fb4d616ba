"""The text tower: a Transformer, causal or not.

Shapes: B captions, T tokens (at most the context length), W width, D embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.model.transformer import Block, initialise_blocks
from clip_core.network import Pooling, TextTower


class TextEncoder(nn.Module):
    """Tokens, positions, Transformer, pooling at the end token, projection, L2 normalisation (Radford et al. 2021).

    forward: input_ids, int64 (B, T) -> text_embeds, float32 (B, D), L2-normalised. Whatever follows the first end token
    of a caption is padding: a causal tower does not attend to it, so captions may be trimmed or padded to any length.
    """

    def __init__(self, config: TextTower, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Parameter(torch.randn(config.context_length, width) * 0.01)
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                mlp_width=config.mlp_width,
                causal=config.causal,
                activation=config.activation,
                norm_eps=config.norm_eps,
            )
            for _ in range(config.layers)
        )
        self.norm_final = nn.LayerNorm(width, eps=config.norm_eps)
        self.projection = nn.Linear(width, embed_dim, bias=config.projection_bias)
        nn.init.normal_(self.tokens.weight, std=0.02)
        initialise_blocks(self.blocks, width)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        tokens = self.tokens(input_ids) + self.positions[: input_ids.shape[1]]  # (B, T, W)
        for block in self.blocks:
            tokens = block(tokens)
        pooled = self.norm_final(self.pool(tokens, input_ids))  # (B, W)
        return F.normalize(self.projection(pooled).float(), dim=-1)  # (B, D)

    def pool(self, tokens: Tensor, input_ids: Tensor) -> Tensor:
        """The output at the pooled token.  (B, T, W), (B, T) -> (B, W)"""
        if self.config.pooling is Pooling.END_OF_TEXT:
            return pool_end_of_text(tokens, input_ids, self.config.end_token)
        return tokens[:, 0 if self.config.pooling is Pooling.FIRST else -1]


def pool_end_of_text(tokens: Tensor, input_ids: Tensor, end_token: int) -> Tensor:
    """The output at the first end token of each caption.  (B, T, W), (B, T) -> (B, W)"""
    end = (input_ids == end_token).int().argmax(dim=1)  # (B,)
    index = end[:, None, None].expand(-1, 1, tokens.shape[2])  # (B, 1, W)
    return tokens.gather(1, index.long()).squeeze(1)
