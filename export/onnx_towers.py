"""The towers as they are converted: the same weights and the same result, in a form that ONNX Runtime runs fastest.

Shapes: B images or captions, T tokens, W width, H heads, E = W / H, D embedding.

- Attention is three matrix products over one (B, T, 3 W): no copies by slices, no shapes computed for each block.
- The last block computes the pooled token alone, where one token is pooled: 7 % of a 12-block tower.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.model.image_encoder import ImageEncoder
from clip_core.model.text_encoder import TextEncoder
from clip_core.model.transformer import Block
from clip_core.network import Pooling


class OnnxImageTower(nn.Module):
    """pixel_values (B, 3, S, S) -> image_embeds (B, D), L2-normalised"""

    def __init__(self, tower: ImageEncoder) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: Tensor) -> Tensor:
        tower, config = self.tower, self.tower.config
        tokens = tower.patches(pixel_values).flatten(2).transpose(1, 2)  # (B, P, W)
        if tower.class_token is not None:
            tokens = torch.cat([tower.class_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        tokens = tower.norm_pre(tokens + tower.positions)
        first = tower.attention_pool is None and config.pooling is Pooling.CLASS_TOKEN
        for block in tower.blocks[:-1] if first else tower.blocks:
            tokens = run_block(block, tokens, None)
        if first:
            pooled = run_block(tower.blocks[-1], tokens, None, tokens[:, :1])[:, 0]  # (B, W)
            pooled = tower.norm_post(pooled)
        else:
            pooled = tower.norm_post(tower.pool(tokens)) if config.norm_after_pooling else tower.pool(
                tower.norm_post(tokens)
            )  # fmt: skip
        embeds = pooled if tower.projection is None else tower.projection(pooled)
        return F.normalize(embeds.float(), dim=-1)


class OnnxTextTower(nn.Module):
    """input_ids int64 (B, T) -> text_embeds (B, D), L2-normalised"""

    def __init__(self, tower: TextEncoder) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: Tensor) -> Tensor:
        tower, config = self.tower, self.tower.config
        length = input_ids.shape[1]
        tokens = tower.tokens(input_ids) + tower.positions[:length]  # (B, T, W)
        mask = torch.full((length, length), float("-inf")).triu(1) if config.causal else None  # (T, T)
        for block in tower.blocks[:-1]:
            tokens = run_block(block, tokens, mask)
        last = tower.blocks[-1]
        if config.pooling is Pooling.END_OF_TEXT:
            end = (input_ids == config.end_token).int().argmax(dim=1)  # (B,), the first by its id
            index = end[:, None, None].expand(-1, 1, tokens.shape[2])
            query = tokens.gather(1, index)  # (B, 1, W)
            if mask is not None:
                mask = mask[end][:, None, None]  # (B, 1, 1, T)
        else:
            place = 0 if config.pooling is Pooling.FIRST else length - 1
            query = tokens[:, place : place + 1]
            mask = None if mask is None else mask[place : place + 1]
        pooled = tower.norm_final(run_block(last, tokens, mask, query)[:, 0])  # (B, W)
        return F.normalize(tower.projection(pooled).float(), dim=-1)


def run_block(block: nn.Module, x: Tensor, mask: Tensor | None, query: Tensor | None = None) -> Tensor:
    """A Block on all tokens, or on the tokens of `query`, which attend to all.

    x (B, T, W), added mask (T, T) or (B, 1, 1, T), query (B, Q, W) -> (B, T, W) or (B, Q, W)
    """
    assert isinstance(block, Block)
    attention = block.attention
    if query is None:
        query = x
        q, k, v = attention.qkv(block.norm_1(x)).chunk(3, dim=-1)
    else:
        width = x.shape[-1]
        weight, bias = attention.qkv.weight, attention.qkv.bias
        q = F.linear(block.norm_1(query), weight[:width], bias[:width])
        k, v = F.linear(block.norm_1(x), weight[width:], bias[width:]).chunk(2, dim=-1)
    heads = attention.heads
    q, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, v))  # (B, H, T, E)
    k = k.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)  # (B, H, E, T)
    scores = q @ k * (q.shape[-1] ** -0.5)  # (B, H, Q, T)
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    y = (weights @ v).transpose(1, 2).flatten(2)  # (B, Q, W)
    x = query + attention.out(y)
    out: Tensor = x + block.mlp(block.norm_2(x))
    return out
