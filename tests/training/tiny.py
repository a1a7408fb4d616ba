"""A tiny model, its batches and its recipe, for tests of the training step without a run."""

from typing import Any

import torch
from torch import Tensor, nn

from clip_core.model.clip import CLIP
from clip_core.network import ClipConfig, ImageTower, Preprocessing, TextTower
from clip_core.run.records import Recipe
from clip_core.training.batches import Batch
from clip_core.training.optimiser import Optimiser

END = 2


def tiny_config(*, logit_bias: bool = False, layers: int = 2, class_token: bool = False) -> ClipConfig:
    return ClipConfig(
        embed_dim=16,
        image=ImageTower(image_size=32, patch_size=8, width=32, heads=2, layers=layers, class_token=class_token),
        text=TextTower(vocab_size=20, end_token=END, context_length=8, width=32, heads=2, layers=layers),
        preprocessing=Preprocessing(image_size=32),
        logit_bias=logit_bias,
    )


def tiny(seed: int = 0, *, logit_bias: bool = False, layers: int = 2) -> CLIP:
    torch.manual_seed(seed)
    return CLIP(tiny_config(logit_bias=logit_bias, layers=layers))


def tiny_recipe(**values: Any) -> Recipe:
    defaults = {
        "device": "cpu", "precision": "fp32", "batch_size": 8, "lr": 1e-3, "steps_per_epoch": 4, "steps": 4,
        "warmup_steps": 1, "eval_every": 4, "checkpoint_every": 4, "weight_decay": 0.1, "layer_decay": 1.0,
        "optimizer": "adamw",
    }  # fmt: skip
    return Recipe(**(defaults | values))


def inputs(seed: int = 0, pairs: int = 6) -> tuple[Tensor, Tensor]:
    """Random pixel values and captions."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, 20, (pairs, 8), generator=generator)
    input_ids[:, -1] = END
    return torch.randn(pairs, 3, 32, 32, generator=generator), input_ids


def tiny_batch(seed: int = 0, pairs: int = 8) -> Batch:
    """Random images; captions in two groups of different lengths, two of them twice."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (pairs, 32, 32, 3), generator=generator, dtype=torch.uint8)
    short, long = (torch.randint(3, 20, (3, length), generator=generator) for length in (4, 8))
    short[:, -1] = long[:, -1] = END
    captions, image_ids = torch.arange(pairs) % 6, torch.arange(pairs)
    return Batch(images, (short, long), captions, image_ids, captions, image_ids, captions)


def adamw(model: CLIP, layer_decay: float = 1.0, lr: float = 1e-2) -> Optimiser:
    device = torch.device("cpu")
    return Optimiser(model, lr=lr, weight_decay=0.1, beta2=0.98, device=device, layer_decay=layer_decay)


def train(model: CLIP, steps: int = 3, optimiser: Optimiser | None = None) -> Optimiser:
    """A few steps on random pairs, the same for every model."""
    optimiser = optimiser or adamw(model)
    for step in range(steps):
        images, texts, logit_scale, _ = model(*inputs(step))
        optimiser.zero_grad()
        nn.functional.cross_entropy(logit_scale * images @ texts.T, torch.arange(6)).backward()
        optimiser.step()
    return optimiser
