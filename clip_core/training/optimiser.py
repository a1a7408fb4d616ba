"""AdamW and its schedule."""

import math

import torch
from torch import Tensor, nn

from clip_core.config import OptimConfig


def make_optimiser(model: nn.Module, config: OptimConfig, lr: float, device: torch.device) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); norms, biases, positions and the temperature do not decay."""
    groups = [
        {"params": [p for _, p in _by_decay(model, True)], "weight_decay": config.weight_decay},
        {"params": [p for _, p in _by_decay(model, False)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, config.beta2), eps=1e-8, fused=device.type in ("cuda", "cpu"))


def _by_decay(model: nn.Module, decays: bool) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if (p.ndim >= 2 and "positions" not in n) is decays]


def learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int, floor: float) -> float:
    """Linear rise over `warmup_steps`, then half a cosine to `floor` x `peak` at the last step; `step` from 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments by parameter name: `blocks.0.mlp.0.weight/exp_avg`."""
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
