"""The parts of a training step: share of its time, FLOPs and bytes; and what the loss takes at large batches.

    python -m benchmarks.step_parts [--preset tiny] [--batch 64] [--steps 5] [--device cpu]

Each part is timed by itself, after one step that is not counted. FLOPs are those of matrix products and convolutions
(torch's FlopCounterMode). Bytes are what a part reads and writes at least: weights, gradients, moments, activations.
"""

import argparse
import time
from collections import defaultdict
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory_estimate import random_batch
from benchmarks.train_run import header, row
from clip_core.config import parse_config
from clip_core.model.clip import CLIP
from clip_core.model.cpu_speed import keep_freed_memory
from clip_core.presets import architecture
from clip_core.training.memory import estimate_memory
from clip_core.training.recipe import resolve_recipe
from clip_core.training.train_step import TrainStep

_PARTS = ("images: normalise, crop", "forward, image tower", "forward, text tower", "loss", "backward", "update, EMA")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_parts")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    keep_freed_memory()
    config = parse_config(
        {
            "model": {"model_size": given.preset},
            "optim": {"batch_size": given.batch, "optimizer": "adamw"},
            "run": {"device": given.device, "precision": "bf16" if given.device == "cuda" else "fp32"},
        }
    )
    network = architecture(config.model, vocab_size=49408, end_token=1, context_length=77)
    recipe, _ = resolve_recipe(config, 100_000, network, epoch_pairs=100_000)
    step = TrainStep(CLIP(network), recipe, config)
    batch = random_batch(given.batch, network.preprocessing.image_size).to(step.device)
    estimate = estimate_memory(step, batch)
    step(batch, 0, recipe.lr)
    seconds: dict[str, list[float]] = defaultdict(list)
    flops: dict[str, float] = {}
    began, counter = time.perf_counter(), FlopCounterMode(display=False)

    def timed(part: str) -> None:
        """The part that ends now."""
        nonlocal began
        if step.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds[part].append(now - began)
        if part not in flops:
            flops[part] = float(counter.get_total_flops()) - sum(flops.values())
        began = now

    for number in range(given.steps):
        counter = FlopCounterMode(display=False)
        with counter:
            began = time.perf_counter()
            images = step.images(batch, step.crops(batch, number))
            timed(_PARTS[0])
            image = step.network(images, None)
            timed(_PARTS[1])
            text = step.network(None, batch.input_ids)
            timed(_PARTS[2])
            loss, _ = step.loss_of(image._replace(text=text.text), batch)
            timed(_PARTS[3])
            step.backward(loss)
            timed(_PARTS[4])
            step.update(number, recipe.lr)
            timed(_PARTS[5])
    weights = 4 * sum(parameter.numel() for parameter in step.model.parameters())
    activations = estimate.per_pair * given.batch
    touched = {
        _PARTS[0]: images.numel() * 9.0,
        _PARTS[3]: float(estimate.of_loss(given.batch)),
        _PARTS[4]: activations + 2 * weights,
        _PARTS[5]: 9.0 * weights,  # weight, gradient, two moments and the EMA: read, and all but the gradient written
    }
    total = sum(median(seconds[part]) for part in _PARTS)
    print(header("part", "share of the time", "GFLOP", "MB"))
    for part in _PARTS:
        share, size = median(seconds[part]) / total, touched.get(part)
        print(row(part, f"{share:.1%}", f"{flops[part] / 1e9:,.1f}", "-" if size is None else f"{size / 1e6:,.0f}"))
    print(row("step", f"{total:.3f} s", f"{sum(flops.values()) / 1e9:,.1f}", f"activations {activations / 1e6:,.0f}"))


if __name__ == "__main__":
    main()
