"""What a run will do, worked out from the configuration, the data and the hardware."""

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from clip_core.config import ClipConfig, TrainConfig, TuneConfig
from clip_core.training.device import choose_device, choose_precision

# Peak learning rates that train from scratch without diverging; larger networks want smaller steps.
_PEAK_LR = {"tiny": 1e-3, "small": 7e-4, "base": 5e-4, "large": 3e-4}
_VIT_PEAK_LR = 5e-4  # what CLIP's own ViT-B was trained with (Radford et al. 2021)
_EPOCHS = 30
_WEIGHT_DECAY = 0.1
_EVALUATIONS = 30

# With weights that are there. The rate is that of a network 768 wide (ViT-B), as in Wortsman et al. 2022.
_TUNE_LR = 1e-5
_TUNE_WIDTH = 768
_LOCKED_TIMES = 3  # the locked tower holds the space in place, so the other may move further
_LORA_TIMES = 30  # adapters start at nothing and are few
_TUNE_LAYER_DECAY = 0.8
_TUNE_STEPS = 1000
_TUNE_EPOCHS = (5, 30)


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
    weight_decay: float
    layer_decay: float
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def epochs(self) -> int:
        return self.steps // self.steps_per_epoch

    def sentence(self) -> str:
        return (
            f"{self.steps} steps of {self.batch_size} pairs ({self.steps_per_epoch} an epoch), peak learning rate "
            f"{self.lr:g} after {self.warmup_steps} steps of warm-up, {self.precision} on {self.device}, "
            f"evaluated every {self.eval_every} steps"
        )


def work_out(config: TrainConfig, train_pairs: int, network: ClipConfig) -> Recipe:
    """Fill in what the user left open.

    Batch size: the power of two that gives about sixteen steps an epoch, between 16 and 128 on a CPU, 256 on a GPU.
    """
    device = choose_device(config.run.device)
    optim, tuning = config.optim, config.tune.init is not None
    largest = 128 if device.type == "cpu" else 256
    by_data = 2 ** int(math.log2(max(train_pairs / 16, 1)))
    batch_size = min(optim.batch_size or min(max(by_data, 16), largest), train_pairs)
    steps_per_epoch = train_pairs // batch_size
    steps = steps_per_epoch * (optim.epochs or (_tune_epochs(steps_per_epoch) if tuning else _EPOCHS))
    eval_every = config.run.eval_every or max(
        steps_per_epoch, math.ceil(steps / _EVALUATIONS / steps_per_epoch) * steps_per_epoch
    )
    recipe = Recipe(
        device=str(device),
        precision=choose_precision(device, config.run.precision),
        batch_size=batch_size,
        lr=optim.lr or (_tune_lr(network, config.tune) if tuning else _scratch_lr(config)),
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        warmup_steps=round(optim.warmup * steps),
        eval_every=eval_every,
        checkpoint_every=config.run.checkpoint_every or eval_every,
        weight_decay=_given(optim.weight_decay, 0.0 if tuning else _WEIGHT_DECAY),
        layer_decay=_given(config.tune.layer_decay, _tune_layer_decay(config.tune) if tuning else 1.0),
    )
    return recipe if not tuning else Recipe(**recipe.as_json() | {"why": _why(recipe, config)})


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _scratch_lr(config: TrainConfig) -> float:
    return _PEAK_LR.get(config.model.model_size, _VIT_PEAK_LR)


def _tune_lr(network: ClipConfig, tune: TuneConfig) -> float:
    """About a fiftieth of the rate from scratch, lower for wider networks; higher where less of it moves."""
    times = _LORA_TIMES if tune.lora else _LOCKED_TIMES if tune.lock != "none" else 1
    return float(f"{times * _TUNE_LR * _TUNE_WIDTH / network.image.width:.1g}")


def _tune_layer_decay(tune: TuneConfig) -> float:
    return 1.0 if tune.lora else _TUNE_LAYER_DECAY


def _tune_epochs(steps_per_epoch: int) -> int:
    fewest, most = _TUNE_EPOCHS
    return min(max(math.ceil(_TUNE_STEPS / steps_per_epoch), fewest), most)


def _why(recipe: Recipe, config: TrainConfig) -> str:
    """The reasons of a tuning recipe, for what the user left open."""
    optim, tune = config.optim, config.tune
    reasons = []
    if optim.lr is None:
        moved = "adapters start at nothing" if tune.lora else "the rate from scratch would overwrite what they know"
        reasons.append(f"peak learning rate {recipe.lr:g}, as {moved}")
    if tune.layer_decay is None and recipe.layer_decay < 1:
        reasons.append(
            f"{recipe.layer_decay:g} of it from each layer to the one below, as early layers serve any picture"
        )
    if optim.weight_decay is None:
        reasons.append("no weight decay, which would pull them to zero")
    if optim.epochs is None:
        reasons.append(f"{recipe.epochs} epochs, which is {recipe.steps} steps, as a small set soon repeats itself")
    return "; ".join(reasons)


def use_all_cores() -> None:
    """Let torch use every core this process may run on (containers often report more than they give)."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(torch.get_num_threads(), available)))
