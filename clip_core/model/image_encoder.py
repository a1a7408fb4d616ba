"""The image tower: a Vision Transformer.

Shapes: B images, S image side, P patches, T = P (+ 1 class token), W width, D embedding.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.model.attention_pooling import AttentionPoolHead
from clip_core.model.transformer import Block, initialise_blocks
from clip_core.network import ImageTower, Pooling, Stem


class ImageEncoder(nn.Module):
    """Patches, positions, Transformer, pooling, projection, L2 normalisation (Dosovitskiy et al. 2020).

    forward: normalised pixel_values, float (B, 3, S, S) -> image_embeds, float32 (B, D), L2-normalised. With
    `kept_patches`, int64 (B, K), the Transformer sees only those patches of each image, and the class token (patch
    dropout, Li et al. 2022).
    """

    def __init__(self, config: ImageTower, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patches = make_stem(config)
        class_tokens = int(config.has_class_token)
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5) if class_tokens else None
        self.positions = nn.Parameter(torch.randn(config.grid**2 + class_tokens, width) * width**-0.5)
        self.norm_pre = nn.LayerNorm(width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                mlp_width=config.mlp_width,
                causal=False,
                activation=config.activation,
                norm_eps=config.norm_eps,
            )
            for _ in range(config.layers)
        )
        self.norm_post = nn.LayerNorm(width, eps=config.norm_eps)
        head = config.attention_pooling
        self.attention_pool = None if head is None else AttentionPoolHead(head, width, config.norm_eps)
        self.projection = nn.Linear(width, embed_dim, bias=config.projection_bias) if config.projection else None
        initialise_blocks(self.blocks, width)
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, pixel_values: Tensor, kept_patches: Tensor | None = None) -> Tensor:
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2)  # (B, P, W)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)  # (B, T, W)
        tokens = self.norm_pre(tokens + self.positions)
        if kept_patches is not None:
            tokens = self.keep(tokens, kept_patches)
        for block in self.blocks:
            tokens = block(tokens)
        if self.config.norm_after_pooling:
            pooled = self.norm_post(self.pool(tokens))  # (B, W)
        else:
            pooled = self.pool(self.norm_post(tokens))
        embeds = pooled if self.projection is None else self.projection(pooled)
        return F.normalize(embeds.float(), dim=-1)  # (B, D)

    def keep(self, tokens: Tensor, kept_patches: Tensor) -> Tensor:
        """The class token, where there is one, and the kept patches.  (B, T, W), (B, K) -> (B, K (+ 1), W)"""
        first = int(self.config.has_class_token)
        patches = tokens[:, first:].gather(1, kept_patches[:, :, None].expand(-1, -1, tokens.shape[2]))
        return torch.cat([tokens[:, :first], patches], dim=1)

    def pool(self, tokens: Tensor) -> Tensor:
        """Attention pooling, the class token, or the mean over patches.  (B, T, W) -> (B, W)"""
        if self.attention_pool is not None:
            pooled: Tensor = self.attention_pool(tokens)
            return pooled
        if self.config.pooling is Pooling.CLASS_TOKEN:
            return tokens[:, 0]
        return tokens[:, int(self.config.has_class_token) :].mean(dim=1)


def make_stem(config: ImageTower) -> nn.Module:
    """Images to patch vectors.  (B, 3, S, S) -> (B, W, S / patch, S / patch)

    `patch` is the linear map of ViT; `conv` halves the image with 3x3 convolutions down to one position a patch, which
    learns faster from few images (Xiao et al. 2021, "Early convolutions help transformers see better").
    """
    if config.stem is Stem.PATCH:
        return nn.Conv2d(3, config.width, config.patch_size, config.patch_size, bias=config.patch_bias)
    halvings = config.patch_size.bit_length() - 1
    widths = [3, *(max(config.width >> (halvings - i), 16) for i in range(1, halvings + 1))]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], config.width, 1))


def interpolate_positions(positions: Tensor, grid: int, *, class_token: bool) -> Tensor:
    """Position embeddings for another image size; that of the class token stays.  (T, W) -> (T', W)

    Args:
        grid: patches along a side of the new size.
    Source: bicubic with antialiasing, as open_clip resizes positions when it loads weights.
    """
    first, patches = positions[: int(class_token)], positions[int(class_token) :]
    old = math.isqrt(len(patches))
    if old == grid:
        return positions
    square = patches.reshape(old, old, -1).permute(2, 0, 1)[None]  # (1, W, old, old)
    resized = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, resized[0].permute(1, 2, 0).flatten(0, 1)])
