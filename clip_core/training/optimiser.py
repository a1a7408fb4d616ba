"""AdamW and its schedule."""

import math

import torch
from torch import Tensor, nn

from clip_core.model.clip import CLIP

# What stands before the first block of either tower.
_EMBEDDINGS = ("patches", "class_token", "tokens", "positions", "norm_pre")


def make_optimiser(
    model: CLIP, *, lr: float, weight_decay: float, beta2: float, device: torch.device, layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over what is trained; norms, biases, positions and the temperature do not decay.

    Each group says in `lr_share` what part of the learning rate it moves by: with `layer_decay` X, the tower's end
    moves by all of it, its last block by X, the one before by X * X (Bao et al. 2021, "BEiT").
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim >= 2 and "positions" not in name else 0.0
            share = layer_decay ** layers_above(model, name)
            groups.setdefault((decay, share), []).append(parameter)
    listed = [
        {"params": members, "weight_decay": decay, "lr": lr * share, "lr_share": share}
        for (decay, share), members in groups.items()
    ]
    return torch.optim.AdamW(listed, lr=lr, betas=(0.9, beta2), eps=1e-8, fused=device.type in ("cuda", "cpu"))


def layers_above(model: CLIP, name: str) -> int:
    """How far below its tower's end a parameter stands: 0 behind the blocks, 1 in the last, most before the first."""
    tower, _, rest = name.partition(".")
    if tower not in ("image", "text"):
        return 0
    layers = len(model.image.blocks if tower == "image" else model.text.blocks)
    part, *place = rest.split(".")
    if part == "blocks":
        return layers - int(place[0])
    return layers + 1 if part in _EMBEDDINGS else 0


def learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int, floor: float) -> float:
    """Linear rise over `warmup_steps`, then half a cosine to `floor` x `peak` at the last step; `step` from 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments by parameter name: `blocks.0.mlp.0.weight/exp_avg`; none for what has never moved."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def restore_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put moments that `optimiser_tensors` made back, bit for bit."""
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        parameter = parameters[name]
        # Fused AdamW wants its step counter beside the parameter.
        optimiser.state[parameter][key] = value.to(parameter.device)
