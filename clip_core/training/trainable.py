"""Which parameters are trained when pretrained weights are fine-tuned: frozen towers and LoRA.

Shapes: I inputs, O outputs, R rank.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.config import LossName, TuneConfig
from clip_core.model.attention_pooling import AttentionPoolHead
from clip_core.model.clip import CLIP
from clip_core.model.image_encoder import ImageEncoder
from clip_core.model.library_tower import LibraryTower
from clip_core.model.projection import ExternalEncoder
from clip_core.model.text_encoder import TextEncoder
from clip_core.model.transformer import Attention
from clip_core.training.ranks import local, whole

TEMPERATURE = "log_logit_scale"
_ADAPTER = "lora_"


def choose_trainable(model: CLIP, tune: TuneConfig, loss: LossName = "softmax") -> None:
    """Freeze a tower, unfreeze its last blocks and add adapters, as configured in `tune`.

    A locked tower is frozen (Zhai et al. 2022, "LiT: zero-shot transfer with locked-image text tuning"). With LoRA the
    adapters and the temperature alone are trainable; blocks that would be frozen get no adapters. The logit bias is
    trainable with the sigmoid loss alone, as it has no gradient in the softmax loss.
    """
    for tower in (model.image, model.text):
        if isinstance(tower, ExternalEncoder):
            _unfreeze(tower)
    if tune.lock != "none":
        locked = model.image if tune.lock == "image" else model.text
        assert not isinstance(locked, ExternalEncoder)  # refused when the weights were read
        _lock(locked, tune.unlock_last)
    if tune.lora is not None:
        blocks = [block for tower in (model.image, model.text) for block in tower.blocks if has_trainable(block)]
        pool = model.image.attention_pool if isinstance(model.image, ImageEncoder) else None
        pool = pool if pool is not None and has_trainable(pool) else None
        model.requires_grad_(False)
        add_adapters(blocks, tune.lora, tune.lora_alpha)
        if pool is not None:
            add_pool_adapters(pool, tune.lora, tune.lora_alpha)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_adapter(name) or name == TEMPERATURE)
    if model.logit_bias is not None:
        model.logit_bias.requires_grad_(loss == "sigmoid")


def _unfreeze(tower: ExternalEncoder) -> None:
    """Its head is trainable, and the last blocks of its encoder, where they are unfrozen."""
    if tower.unfrozen is not None:
        tower.unfrozen.requires_grad_(False)
        for block in tower.blocks[-tower.config.unfrozen :]:
            block.requires_grad_(True)


def _lock(tower: ImageEncoder | TextEncoder | LibraryTower, unlock_last: int) -> None:
    tower.requires_grad_(False)
    if isinstance(tower, LibraryTower):
        above = tower.layers_above()
        for name, parameter in tower.named_parameters() if unlock_last else ():
            parameter.requires_grad_(above[name] <= unlock_last)
        return
    if unlock_last:
        last: tuple[nn.Module | None, ...] = (
            (tower.norm_post, tower.attention_pool) if isinstance(tower, ImageEncoder) else (tower.norm_final,)
        )
        for part in (*tower.blocks[-unlock_last:], *last, tower.projection):
            if part is not None:
                part.requires_grad_(True)


def has_trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def trainable_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


# ---------------------------------------------------------------- LoRA


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank adapter: W + alpha / R * up @ down.

    `up` starts at zero, so the layer computes what it did before. Weight and bias keep their names and stay the
    parameters of the layer that was given. Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language
    Models".
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
        """The weight of a plain linear layer that computes the same, or its rows of this rank.  -> (O, I)"""
        return local(self.weight) + self.factor * (local(self.lora_up) @ whole(self.lora_down))


def add_adapters(blocks: Iterable[nn.Module], rank: int, alpha: float | None) -> None:
    """Add adapters to the linear layers of these blocks: attention's qkv and out, and both of the MLP.

    Args:
        alpha: scale of the adapters, before the division by the rank; None for twice the rank.
    Raises:
        TypeError: for a module that is not a Transformer block.
    """
    alpha = alpha or 2.0 * rank
    for block in blocks:
        attention, mlp = block.get_submodule("attention"), block.get_submodule("mlp")
        if not isinstance(attention, Attention) or not isinstance(mlp, nn.Sequential):
            raise TypeError(f"{type(block).__name__} is not a Transformer block")
        attention.qkv = LoRALinear(attention.qkv, rank, alpha)
        attention.out = LoRALinear(attention.out, rank, alpha)
        _adapt_mlp(mlp, rank, alpha)


def add_pool_adapters(pool: AttentionPoolHead, rank: int, alpha: float | None) -> None:
    """Add adapters to the linear layers of attention pooling; `alpha` as in `add_adapters`."""
    alpha = alpha or 2.0 * rank
    pool.query, pool.key_value = LoRALinear(pool.query, rank, alpha), LoRALinear(pool.key_value, rank, alpha)
    pool.out = LoRALinear(pool.out, rank, alpha)
    _adapt_mlp(pool.mlp, rank, alpha)


def _adapt_mlp(mlp: nn.Sequential, rank: int, alpha: float) -> None:
    for index, layer in enumerate(mlp):
        if isinstance(layer, nn.Linear):
            mlp[index] = LoRALinear(layer, rank, alpha)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.rpartition(".")[2].startswith(_ADAPTER)


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The linear layers with an adapter, by the name of their weight."""
    return {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


@torch.no_grad()
def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a plain network that computes the same; weights without an adapter are not copied."""
    plain = {name: value for name, value in model.state_dict().items() if not is_adapter(name)}
    return plain | {name: layer.merged() for name, layer in adapted_layers(model).items()}
