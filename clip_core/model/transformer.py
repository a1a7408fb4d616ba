"""The Transformer blocks of both towers.

Shapes: B batch, T tokens, W width, H heads, E = W / H.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.model import cpu_speed
from clip_core.network import Activation


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation that OpenAI's CLIP weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def make_activation(activation: Activation) -> nn.Module:
    if activation is Activation.QUICK_GELU:
        return QuickGELU()
    return nn.GELU("tanh" if activation is Activation.GELU_TANH else "none")


def make_mlp(width: int, hidden: int, activation: Activation) -> nn.Sequential:
    """Two layers with an activation between them.  (..., W) -> (..., W)"""
    return nn.Sequential(nn.Linear(width, hidden), make_activation(activation), nn.Linear(hidden, width))


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017), causal or not.  (B, T, W) -> (B, T, W)"""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, T, E)
        y = attend(qkv, causal=self.causal)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


def attend(qkv: Tensor, *, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(E)) v.  (3, B, H, T, E) -> (B, H, T, E)"""
    if cpu_speed.prefers_products(qkv):
        return cpu_speed.attend_by_products(qkv, causal=causal)
    q, k, v = qkv.unbind()
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


class Block(nn.Module):
    """A pre-norm residual block: attention, then a two-layer MLP.  (B, T, W) -> (B, T, W)"""

    def __init__(
        self, width: int, heads: int, *, mlp_width: int, causal: bool, activation: Activation, norm_eps: float
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, causal=causal)
        self.norm_2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = make_mlp(width, mlp_width, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out


def initialise_blocks(blocks: nn.ModuleList, width: int) -> None:
    """CLIP's initialisation: layers that write to the residual stream are scaled by depth (Radford et al. 2021)."""
    attention_std = width**-0.5
    residual_std = attention_std * (2 * len(blocks)) ** -0.5
    for block in blocks:
        assert isinstance(block, Block)
        first, last = block.mlp[0], block.mlp[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        for linear, std in (
            (block.attention.qkv, attention_std),
            (block.attention.out, residual_std),
            (first, (2 * width) ** -0.5),
            (last, residual_std),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)
