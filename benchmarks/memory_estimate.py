"""Is the memory that clip-train announces before its first step what it then takes? Each size in a process of its own.

    python -m benchmarks.memory_estimate [PRESET:BATCH ...]

The estimate of `clip_core.training.memory` beside the growth of the process's peak resident size (`getrusage`) over two
steps on random images and captions.
"""

import json
import resource
import subprocess
import sys

import torch

from benchmarks.train_run import header, row
from clip_core.config import TrainConfig
from clip_core.model.clip import CLIP
from clip_core.model.cpu_speed import keep_freed_memory
from clip_core.presets import architecture
from clip_core.training.batches import Batch
from clip_core.training.memory import estimate_memory
from clip_core.training.recipe import resolve_recipe
from clip_core.training.train_step import TrainStep

SIZES = ("nano:64", "ViT-B-32:8")
STEPS = 2
LENGTH = 77
CHILD = "--one"


def main(sizes: list[str]) -> None:
    print(header("preset", "batch", "estimated MB", "measured MB", "estimated / measured"))
    for size in sizes or SIZES:
        asked = [sys.executable, "-m", "benchmarks.memory_estimate", CHILD, size]
        answer = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True)
        estimated, measured = json.loads(answer.stdout)
        preset, _, batch = size.partition(":")
        numbers = f"{estimated / 1e6:,.0f}", f"{measured / 1e6:,.0f}", f"{estimated / measured:.2f}"
        print(row(preset, batch, *numbers), flush=True)


def one(size: str) -> None:
    """Estimate and growth of one size, in bytes, as JSON."""
    preset, _, count = size.partition(":")
    config = TrainConfig.model_validate(
        {"model": {"model_size": preset}, "optim": {"batch_size": int(count)}, "run": {"device": "cpu"}}
    )
    network = architecture(config.model, vocab_size=49408, end_token=1, context_length=LENGTH)
    recipe, _ = resolve_recipe(config, 100_000, network, epoch_pairs=100_000)
    keep_freed_memory()
    step = TrainStep(CLIP(network, 0.07), recipe, config)
    batch = random_batch(int(count), network.preprocessing.image_size)
    estimate = estimate_memory(step, batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(STEPS):
        step(batch, number, recipe.lr)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([estimate.of_step(int(count)), grown * 1024]))


def random_batch(count: int, side: int) -> Batch:
    """Different images, each with a caption of the full length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(count)
    return Batch(
        images=torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8),
        input_ids=(torch.randint(2, 49408, (count, LENGTH), generator=generator),),
        text_rows=ids,
        image_ids=ids,
        caption_ids=ids,
        all_image_ids=ids,
        all_caption_ids=ids,
    )


if __name__ == "__main__":
    one(sys.argv[2]) if sys.argv[1:2] == [CHILD] else main(sys.argv[1:])
