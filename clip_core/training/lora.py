"""Low-rank adapters (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models").

Shapes: I inputs, O outputs, R rank.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.model.transformer import Attention

_PREFIX = "lora_"


class LoRALinear(nn.Linear):
    """A linear map with a trained product of two thin matrices beside its weight: W + alpha / R * up @ down.

    `up` starts at zero, so at first nothing changes. Weight and bias keep their names and stay the caller's own
    parameters.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.factor = alpha / rank
        device = linear.weight.device
        self.lora_down = nn.Parameter(torch.randn(rank, linear.in_features, device=device) * linear.in_features**-0.5)
        self.lora_up = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) -> (..., O)"""
        low_rank = F.linear(F.linear(input, self.lora_down), self.lora_up)
        return F.linear(input, self.weight, self.bias) + self.factor * low_rank

    def merged(self) -> Tensor:
        """The one weight that does what both do.  -> (O, I)"""
        return self.weight + self.factor * (self.lora_up @ self.lora_down)


def add_adapters(blocks: Iterable[nn.Module], rank: int, alpha: float | None) -> None:
    """Put adapters beside the linear maps of these blocks: attention's qkv and out, and both of the MLP.

    Args:
        alpha: how much the adapters count, over the rank; None is twice the rank.
    """
    alpha = alpha or 2.0 * rank
    for block in blocks:
        attention, mlp = block.get_submodule("attention"), block.get_submodule("mlp")
        if not isinstance(attention, Attention) or not isinstance(mlp, nn.Sequential):
            raise TypeError(f"{type(block).__name__} is not a Transformer block")
        attention.qkv = LoRALinear(attention.qkv, rank, alpha)
        attention.out = LoRALinear(attention.out, rank, alpha)
        for place, part in enumerate(mlp):
            if isinstance(part, nn.Linear):
                mlp[place] = LoRALinear(part, rank, alpha)


def is_adapter(name: str) -> bool:
    return name.rpartition(".")[2].startswith(_PREFIX)


def adapted(model: nn.Module) -> dict[str, LoRALinear]:
    """The linear maps with an adapter, by the name of their weight."""
    return {f"{name}.weight": part for name, part in model.named_modules() if isinstance(part, LoRALinear)}


@torch.no_grad()
def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the plain network that does the same: adapters merged, everything else as it is, not copied."""
    plain = {name: value for name, value in model.state_dict().items() if not is_adapter(name)}
    return plain | {name: linear.merged() for name, linear in adapted(model).items()}
