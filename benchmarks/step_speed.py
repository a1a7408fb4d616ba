"""One training step on the CPU: open_clip's class and clip-train's, the same shapes and loss, in turns.

    python -m benchmarks.step_speed [--rounds 10] [--ways ROW ...] [--no-compile]
    python -m benchmarks.step_speed --curve [--steps 200]

Width 256, six layers in each tower, 64 px in patches of 8, 64 pairs of 32 tokens out of CLIP's 49,408. A step is
forward, softmax loss, backward, clipping of the gradient and the optimiser's move. Each way has a process of its own,
set up as its trainer sets up its own, and computes while the others wait; a turn is a step that is not counted and
three that are. --curve trains clip-train on drawn shapes in both precisions, with two seeds, and prints how far the
losses are apart.
"""

import argparse
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean, median

import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import open_clip_peer as peer
from benchmarks.train_run import header, row, train
from clip_core.config import parse_config
from clip_core.data.synthetic import create_synthetic
from clip_core.model.clip import CLIP
from clip_core.model.cpu_speed import keep_freed_memory, use_all_cores
from clip_core.presets import architecture
from clip_core.run.reader import RunReader
from clip_core.training.batches import Batch
from clip_core.training.recipe import resolve_recipe
from clip_core.training.train_step import TrainStep

BATCH, TOKENS, VOCABULARY = 64, 32, 49408
GRAD_CLIP = 1.0
COUNTED = 3  # steps of a turn
MATMULS = {"2048 x 2048 x 2048": (2048, 2048, 2048), "4096 x 256 x 1024, of the step": (4096, 256, 1024)}
CURVE_EPOCHS, CURVE_SEEDS, CURVE_WINDOWS = 4, (0, 1), 10
PRECISIONS = ("fp32", "bf16")

Step = Callable[[], object]


# ---------------------------------------------------------------- the steps


def our_step(precision: str, optimizer: str = "adamw", *, compiled: bool = False) -> Step:
    """On a batch that stays the same, without random crops or an average, as open_clip's is."""
    keep_freed_memory()
    config = parse_config(
        {
            "model": {"model_size": "tiny"},
            "optim": {"batch_size": BATCH, "augment": False, "grad_clip": GRAD_CLIP, "optimizer": optimizer},
            "tune": {"ema": 0},
            "run": {"precision": precision, "device": "cpu"},
        }
    )
    pairs = 1000 * BATCH
    network = architecture(
        config.model, vocab_size=VOCABULARY, end_token=VOCABULARY - 1, context_length=TOKENS, pairs=pairs
    )
    recipe, _ = resolve_recipe(config, pairs, network, epoch_pairs=pairs)
    train_step = TrainStep(CLIP(network), recipe, config)
    if compiled:
        for tower in (train_step.mixed_precision.network.image, train_step.mixed_precision.network.text):
            tower.compile()
    images = torch.randint(0, 256, (BATCH, peer.SIDE, peer.SIDE, 3), dtype=torch.uint8)
    rows = torch.arange(BATCH)
    batch = Batch(images, (some_tokens(),), rows, rows, rows, rows, rows)
    return lambda: train_step(batch, 0, recipe.lr)


def open_clip_step(*, bf16: bool, compiled: bool = False, kept: bool = False) -> Step:
    """As its trainer steps, and the gradient clipped, as it can; `kept`: with freed memory kept, as clip-train does."""
    if kept:
        keep_freed_memory()
    model, loss = peer.make_model(TOKENS), ClipLoss()
    optimiser = peer.make_optimiser(model)
    forward = torch.compile(model) if compiled else model
    images, tokens = torch.randn(BATCH, 3, peer.SIDE, peer.SIDE), some_tokens()

    def step() -> None:
        optimiser.zero_grad()
        peer.backward(forward, loss, images, tokens, bf16=bf16)
        nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimiser.step()
        peer.clamp_logit_scale(model)

    return step


def some_tokens() -> Tensor:
    """Random captions that fill the context, the end token last.  -> (BATCH, TOKENS)"""
    tokens = torch.randint(1, VOCABULARY - 2, (BATCH, TOKENS))
    tokens[:, -1] = VOCABULARY - 1
    return tokens


WAYS: dict[str, Callable[[], Step]] = {
    f"{peer.NAME}, fp32": partial(open_clip_step, bf16=False),
    f"{peer.NAME}, fp32, freed memory kept": partial(open_clip_step, bf16=False, kept=True),
    f"{peer.NAME}, bf16 autocast": partial(open_clip_step, bf16=True),
    f"{peer.NAME}, bf16 autocast, compiled": partial(open_clip_step, bf16=True, compiled=True),
    "clip-train, fp32, AdamW": partial(our_step, "fp32"),
    "clip-train, bf16, AdamW": partial(our_step, "bf16"),
    "clip-train, bf16, AdamW, compiled": partial(our_step, "bf16", compiled=True),
    "clip-train, bf16, Muon": partial(our_step, "bf16", "muon"),
}
# What is compiled multiplies what the other does.
COMPILED = {name: name.removesuffix(", compiled") for name in WAYS if name.endswith(", compiled")}


# ---------------------------------------------------------------- speed


class Worker:
    """A way to step, in its own process that computes on request."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        context.Process(target=serve, args=(name, theirs), daemon=True).start()
        theirs.close()  # so that a process that dies is noticed
        print(f"{name}: {self._pipe.recv():.0f} s for the first two steps", file=sys.stderr, flush=True)
        self.gflops: float = self._pipe.recv()

    def turn(self) -> float:
        """Seconds a step."""
        self._pipe.send(COUNTED)
        seconds: float = self._pipe.recv()
        return seconds


def serve(name: str, pipe: Connection) -> None:
    """Set up, tell how long the first steps took (compilation, the optimiser's state) and what a step multiplies, and
    step on demand."""
    use_all_cores()
    torch.manual_seed(0)
    step = WAYS[name]()
    began = time.perf_counter()
    for _ in range(2):
        step()
    pipe.send(time.perf_counter() - began)
    pipe.send(0.0 if name in COMPILED else gflops_of(step))
    while True:
        steps = pipe.recv()
        step()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        pipe.send((time.perf_counter() - began) / steps)


def gflops_of(step: Step) -> float:
    """Of the matrix products and convolutions of a step; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops()) / 1e9


def matmul_gflops(sides: tuple[int, int, int], dtype: torch.dtype, rounds: int) -> float:
    """GFLOP/s of one matrix product at its fastest, which is the peak that a step is held against."""
    m, k, n = sides
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - began)
    return 2e-9 * m * k * n / min(seconds)


def has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "c++", "clang++"))


def compare(rounds: int, ways: Sequence[str], *, compiled: bool) -> None:
    """Alternate between these ways; the first is what the others are held against."""
    names = [name for name in ways if name not in COMPILED or (compiled and has_compiler())]
    workers = {name: Worker(name) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.turn())
    known = {name: worker.gflops for name, worker in workers.items() if worker.gflops}
    gflops = {name: known.get(COMPILED.get(name, name), math.nan) for name in names}
    use_all_cores()
    peaks = {
        precision: {name: matmul_gflops(sides, dtype, 20) for name, sides in MATMULS.items()}
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    print_steps(seconds, gflops, peaks)
    if compiled and not has_compiler():
        print("\nThere is no C++ compiler here, so nothing was compiled.")


def print_steps(seconds: dict[str, list[float]], gflops: dict[str, float], peaks: dict[str, dict[str, float]]) -> None:
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(header("matrix product", *(f"{precision}, GFLOP/s" for precision in peaks)))
    for name in MATMULS:
        print(row(name, *(f"{measured[name]:,.0f}" for measured in peaks.values())))
    print()
    shares = [f"share of the peak, {name}" for name in MATMULS]
    print(header("step", "ms", "times open_clip fp32", "GFLOPs", "GFLOP/s", *shares))
    reference = next(iter(seconds.values()))
    for name, taken in seconds.items():
        times = median(first / this for first, this in zip(reference, taken, strict=True))
        rate = gflops[name] / median(taken)
        peak = peaks["bf16" if "bf16" in name else "fp32"]
        of_peak = (f"{rate / value:.0%}" for value in peak.values())
        print(row(name, f"{1000 * median(taken):.0f}", f"{times:.2f}", f"{gflops[name]:.0f}", f"{rate:.0f}", *of_peak))


# ---------------------------------------------------------------- the loss


def curves(steps: int) -> None:
    """Loss in windows of the run, both precisions, two seeds."""
    losses: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        create_synthetic(here / "train.json", count=BATCH * steps // CURVE_EPOCHS, seed=0, size=peer.SIDE)
        create_synthetic(here / "val.json", count=90, seed=1, size=peer.SIDE)
        for seed in CURVE_SEEDS:
            for precision in PRECISIONS:
                losses[precision, seed] = train_losses(here, precision, seed)
    count = min(CURVE_WINDOWS, steps)
    windows = {key: in_windows(values, count) for key, values in losses.items()}
    first, second = CURVE_SEEDS
    print(header("steps until", *(f"{p}, seed {s}" for p, s in windows), "bf16 to fp32", "seed to seed"))
    apart: list[tuple[float, float]] = []
    for window in range(count):
        loss = {key: values[window] for key, values in windows.items()}
        precisions = mean(abs(loss["bf16", seed] - loss["fp32", seed]) for seed in CURVE_SEEDS)
        seeds = mean(abs(loss[precision, first] - loss[precision, second]) for precision in PRECISIONS)
        apart.append((precisions, seeds))
        until = (window + 1) * steps // count
        print(row(until, *(f"{value:.3f}" for value in (*loss.values(), precisions, seeds))))
    precisions, seeds = (mean(column) for column in zip(*apart, strict=True))
    verdict = "within noise" if precisions <= seeds else "beyond noise"
    print(f"\nMean difference of the loss between precisions {precisions:.4f}, between seeds {seeds:.4f}: {verdict}.")


def train_losses(here: Path, precision: str, seed: int) -> list[float]:
    """The loss of every step of a run on the same images."""
    run = here / f"{precision}_{seed}"
    data = ["--data-file", str(here / "train.json"), "--val-file", str(here / "val.json"), "--tokenizer", "char"]
    size = ["--model-size", "tiny", "--batch-size", str(BATCH), "--epochs", str(CURVE_EPOCHS), "--optimizer", "adamw"]
    train(run, *data, *size, "--precision", precision, "--seed", str(seed), "--log-every", "1", "--eval-every", "1000")
    return [line["loss"] for line in RunReader(run).all_lines() if line["kind"] == "train"]


def in_windows(values: Sequence[float], count: int) -> list[float]:
    """Means of so many equal parts."""
    borders = [number * len(values) // count for number in range(count + 1)]
    return [mean(values[low:high]) for low, high in pairwise(borders)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_speed")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of the table's rows (default: all)"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled steps out")
    parser.add_argument("--curve", action="store_true", help="the loss in both precisions instead of the speed")
    parser.add_argument("--steps", type=int, default=200, help="of --curve")
    given = parser.parse_args()
    if given.curve:
        curves(given.steps)
    else:
        compare(given.rounds, given.ways, compiled=not given.no_compile)


if __name__ == "__main__":
    main()
