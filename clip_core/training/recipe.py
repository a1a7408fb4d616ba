"""What a run will do, worked out from the configuration, the data and the hardware."""

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from clip_core.config import TrainConfig
from clip_core.training.device import choose_device, choose_precision

# Peak learning rates that train from scratch without diverging; larger networks want smaller steps.
_PEAK_LR = {"tiny": 1e-3, "small": 7e-4, "base": 5e-4, "large": 3e-4}
_VIT_PEAK_LR = 5e-4  # what CLIP's own ViT-B was trained with (Radford et al. 2021)
_EVALUATIONS = 30


@dataclass(frozen=True)
class Recipe:
    """Every default that depends on something else, as it became. Stored as `resolved` in config.json."""

    device: str
    precision: str
    batch_size: int
    lr: float
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    eval_every: int
    checkpoint_every: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        return (
            f"{self.steps} steps of {self.batch_size} pairs ({self.steps_per_epoch} an epoch), peak learning rate "
            f"{self.lr:g} after {self.warmup_steps} steps of warm-up, {self.precision} on {self.device}, "
            f"evaluated every {self.eval_every} steps"
        )


def work_out(config: TrainConfig, train_pairs: int) -> Recipe:
    """Fill in what the user left open.

    Batch size: the power of two that gives about sixteen steps an epoch, between 16 and 128 on a CPU, 256 on a GPU.
    """
    device = choose_device(config.run.device)
    largest = 128 if device.type == "cpu" else 256
    by_data = 2 ** int(math.log2(max(train_pairs / 16, 1)))
    batch_size = min(config.optim.batch_size or min(max(by_data, 16), largest), train_pairs)
    steps_per_epoch = train_pairs // batch_size
    steps = steps_per_epoch * config.optim.epochs
    eval_every = config.run.eval_every or max(
        steps_per_epoch, math.ceil(steps / _EVALUATIONS / steps_per_epoch) * steps_per_epoch
    )
    return Recipe(
        device=str(device),
        precision=choose_precision(device, config.run.precision),
        batch_size=batch_size,
        lr=config.optim.lr or _PEAK_LR.get(config.model.model_size, _VIT_PEAK_LR),
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        warmup_steps=round(config.optim.warmup * steps),
        eval_every=eval_every,
        checkpoint_every=config.run.checkpoint_every or eval_every,
    )


def use_all_cores() -> None:
    """Let torch use every core this process may run on (containers often report more than they give)."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(torch.get_num_threads(), available)))
