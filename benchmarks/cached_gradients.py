"""Peak memory and step time of large batches, whole and in chunks with the gradient of the whole batch.

    python -m benchmarks.cached_gradients [--batches 64 256 1024 4096] [--chunk 64] [--preset nano] ...

Each measurement is a process of its own: random images and captions, one step that is not counted, then the counted
ones. Memory is the growth of the process's peak resident size (VmHWM) over what it had before the first step.
"""

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch

from benchmarks.memory_estimate import random_batch
from benchmarks.train_run import header, row
from clip_core.config import parse_config
from clip_core.model.clip import CLIP
from clip_core.model.cpu_speed import give_back_memory
from clip_core.presets import architecture
from clip_core.training.recipe import resolve_recipe
from clip_core.training.train_step import TrainStep

_COUNTED = 3  # steps


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cached_gradients")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--size", type=int, default=32, help="image size, pixels")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=_COUNTED)
    given = parser.parse_args()
    print(header("batch", "whole: peak MB", "whole: s/step", f"chunks of {given.chunk}: peak MB", "s/step", "times"))
    for batch in given.batches:
        whole = measured(batch, None, given)
        chunks = measured(batch, given.chunk, given)
        cells = [f"{value:,.0f}" if n % 2 == 0 else f"{value:.3f}" for n, value in enumerate((*whole, *chunks))]
        print(row(batch, *cells, f"{chunks[1] / whole[1]:.2f}"), flush=True)


def measured(batch_size: int, chunk_size: int | None, given: argparse.Namespace) -> tuple[float, float]:
    """Peak MB and seconds a step, in a process that is forked before any tensor was made."""
    context = multiprocessing.get_context("fork")
    pipe, theirs = context.Pipe()
    process = context.Process(target=measure, args=(theirs, batch_size, chunk_size, given))
    process.start()
    theirs.close()
    found: tuple[float, float] = pipe.recv()
    process.join()
    return found


def measure(pipe: Connection, batch_size: int, chunk_size: int | None, given: argparse.Namespace) -> None:
    torch.manual_seed(0)
    config = parse_config(
        {
            "model": {
                "model_size": given.preset,
                "image_size": given.size,
                "layers": given.layers,
                "width": given.width,
            },
            "optim": {"batch_size": batch_size, "chunk_size": chunk_size, "optimizer": "adamw"},
            "run": {"device": "cpu", "precision": "fp32"},
        }
    )
    network = architecture(config.model, vocab_size=49408, end_token=1, context_length=77)
    recipe, _ = resolve_recipe(config, 100_000, network, epoch_pairs=100_000)
    step, batch = TrainStep(CLIP(network), recipe, config), random_batch(batch_size, given.size)
    step(random_batch(8, given.size), 0, recipe.lr)  # the optimiser's state and what the first call loads
    give_back_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again here
    before, seconds = kilobytes("VmRSS"), []
    for number in range(given.steps):
        began = time.perf_counter()
        step(batch, number, recipe.lr)
        seconds.append(time.perf_counter() - began)
    pipe.send(((kilobytes("VmHWM") - before) / 1e3, median(seconds)))


def kilobytes(name: str) -> int:
    """A figure of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
