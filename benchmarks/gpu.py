"""The whole GPU table, on any CUDA machine, in a few minutes: what fails is printed, and the rest goes on.

    python -m benchmarks.gpu [--device cuda] [--minutes 8] [--smallest]

Steps of clip-train on random images and captions (forward, loss, backward, clipping, AdamW; bf16), each preset at the
batch that fits; open_clip's model, loss and step in turns with ours in the same process, where it is installed; a batch
beyond memory in chunks; torch.compile; a short training run that is stopped and resumed; its bundle in ONNX Runtime.
MFU is the FLOPs of the matrix products of a step (FlopCounterMode; a multiply-add is two) over the datasheet's dense
bf16 peak; for a GPU that is not in the list below, over the fastest of three matrix products measured here.
"""

import argparse
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_run import header, row
from clip_core.config import parse_config
from clip_core.model.clip import CLIP
from clip_core.model.model_size import parameters
from clip_core.presets import architecture
from clip_core.run.reader import RunReader
from clip_core.training.batches import Batch
from clip_core.training.cached_gradient import out_of_memory
from clip_core.training.recipe import resolve_recipe
from clip_core.training.train_step import TrainStep

# Dense bf16 TFLOP/s of the datasheets, by a part of the device's name; the first that fits counts.
_PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "B200": 2250, "A100": 312, "L40S": 362, "L4": 121, "4090": 165}
_VOCABULARY, _TOKENS = 49408, 77
_PRESETS = {"tiny": 2048, "small": 2048, "base": 1024, "large": 512, "ViT-B-32": 1024, "ViT-B-16": 512}
_PEERS = {"ViT-B-32": 512, "ViT-B-16": 256}
_CHUNKED = ("ViT-B-16", 4096, 256)  # preset, batch, chunk
_ROUNDS, _TURN = 5, 4  # turns of each way, and steps of a turn
_GIB = 2**30

Step = Callable[[], object]


@dataclass
class Bench:
    """Where and how long to measure. `smallest`: the least of everything, to see that it runs."""

    device: torch.device
    deadline: float
    smallest: bool
    peak: float = 0.0  # TFLOP/s
    failed: int = 0

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """Run a part; print why it failed or was left out."""
        if time.monotonic() > self.deadline:
            print(f"left out: {name}: the time is over", flush=True)
            return
        try:
            work()
        except Exception as error:  # whatever it is, the other parts are worth having
            self.failed += 1
            print(f"failed: {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
        self.clear()

    def clear(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, step: Step, count: int) -> float:
        """Of a step, the mean of `count`."""
        self.wait()
        began = time.perf_counter()
        for _ in range(count):
            step()
        self.wait()
        return (time.perf_counter() - began) / count

    def memory(self) -> str:
        """The most that was allocated."""
        return f"{torch.cuda.max_memory_allocated() / _GIB:.1f}" if self.device.type == "cuda" else "-"

    def mfu(self, flops: float, seconds: float) -> str:
        return f"{flops / seconds / self.peak / 1e12:.1%}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no further part is begun")
    parser.add_argument("--smallest", action="store_true", help="the least of everything, as on a CPU")
    given = parser.parse_args(argv)
    device = torch.device(given.device)
    smallest = given.smallest or device.type != "cuda"
    bench = Bench(device, time.monotonic() + 60 * given.minutes, smallest)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {'smallest size' if smallest else 'full size'}")
    began = time.monotonic()
    bench.attempt("peak", lambda: find_peak(bench, name))
    bench.peak = bench.peak or 1.0
    bench.attempt("presets", lambda: presets(bench))
    bench.attempt("open_clip", lambda: peers(bench))
    bench.attempt("chunks", lambda: chunks(bench))
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        bench.attempt("training run", lambda: training_run(bench, run))
        bench.attempt("ONNX Runtime", lambda: onnx_runtime(bench, run))
    if not smallest:
        bench.attempt("torch.compile", lambda: compiled(bench))
    print(f"\n{time.monotonic() - began:.0f} s; {bench.failed} parts failed")
    return 1 if bench.failed else 0


def find_peak(bench: Bench, name: str) -> None:
    """TFLOP/s that MFU is a fraction of."""
    side = 256 if bench.smallest else 8192
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    bench.seconds(lambda: a @ b, 3)
    measured = 2 * side**3 / min(bench.seconds(lambda: a @ b, 5) for _ in range(3)) / 1e12
    known = next((float(peak) for part, peak in _PEAKS.items() if part in name), None)
    bench.peak = known or measured
    source = f"datasheet {known:g}" if known else "the measured one"
    print(f"matrix product of {side}: {measured:.3g} TFLOP/s; peak for MFU: {source}\n", flush=True)


# ---------------------------------------------------------------- steps


def our_step(
    bench: Bench, preset: str, batch_size: int, *, chunk_size: int | None = None, checkpointing: bool = False
) -> tuple[Step, CLIP]:
    """A step of clip-train with AdamW and without augmentation and EMA, as open_clip's is."""
    precision = "bf16" if bench.device.type == "cuda" else "fp32"
    model: dict[str, Any] = {"model_size": preset}
    if bench.smallest:
        model |= {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64}
    config = parse_config(
        {
            "model": model,
            "optim": {"batch_size": batch_size, "augment": False, "optimizer": "adamw", "chunk_size": chunk_size},
            "tune": {"ema": 0},
            "run": {"precision": precision, "device": str(bench.device), "checkpoint_activations": checkpointing},
        }
    )
    pairs = 1000 * batch_size
    network = architecture(config.model, vocab_size=_VOCABULARY, end_token=_VOCABULARY - 1, context_length=_TOKENS)
    recipe, _ = resolve_recipe(config, pairs, network, epoch_pairs=pairs)
    train_step = TrainStep(CLIP(network), recipe, config)
    side, rows = network.preprocessing.image_size, torch.arange(batch_size)
    images = torch.randint(0, 256, (batch_size, side, side, 3), dtype=torch.uint8)
    batch = Batch(images, (some_tokens(batch_size),), rows, rows, rows, rows, rows).to(bench.device)
    return lambda: train_step(batch, 0, recipe.lr), train_step.mixed_precision.network


def open_clip_step(bench: Bench, name: str, batch_size: int) -> Step:
    """A step of open_clip: its model under autocast to bf16, its loss, fused AdamW, clipping."""
    import open_clip
    from open_clip.loss import ClipLoss

    model = open_clip.create_model(name, device=bench.device)
    loss, optimiser = ClipLoss(), torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), fused=True)
    images = torch.randn(batch_size, 3, 224, 224, device=bench.device)
    tokens = some_tokens(batch_size).to(bench.device)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(bench.device.type, dtype=torch.bfloat16):
            image, text, scale = model(images, tokens)
            value: Tensor = loss(image, text, scale)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)

    return step


def some_tokens(count: int) -> Tensor:
    """Random captions that fill the context, the end token last.  -> (count, T)"""
    tokens = torch.randint(1, _VOCABULARY - 2, (count, _TOKENS))
    tokens[:, -1] = _VOCABULARY - 1
    return tokens


def flops_of(step: Step) -> float:
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


# ---------------------------------------------------------------- parts


def presets(bench: Bench) -> None:
    """Images/s, MFU and memory of each preset, at the largest of some batches that fits."""
    print(header("preset", "parameters", "batch", "images/s", "MFU", "GiB"))
    for preset, batch_size in {"tiny": 4}.items() if bench.smallest else _PRESETS.items():
        bench.attempt(preset, partial(one_preset, bench, preset, batch_size))
    print()


def one_preset(bench: Bench, preset: str, batch_size: int) -> None:
    while True:
        try:
            step, network = our_step(bench, preset, batch_size)
            step()
            break
        except RuntimeError as error:
            if not out_of_memory(error) or batch_size <= 2:
                raise
        bench.clear()  # after the handler, whose traceback holds the activations
        batch_size //= 2
    flops, count = flops_of(step), 2 if bench.smallest else 20
    bench.seconds(step, 1 if bench.smallest else 5)
    seconds = bench.seconds(step, count)
    numbers = f"{batch_size / seconds:,.0f}", bench.mfu(flops, seconds), bench.memory()
    print(row(preset, f"{parameters(network):,}", batch_size, *numbers), flush=True)


def peers(bench: Bench) -> None:
    """Our step and open_clip's in turns, in one process."""
    if bench.smallest:
        print("open_clip: left out in the smallest size\n")
        return
    try:
        import open_clip  # noqa: F401
    except ImportError:
        print("open_clip: not installed, so nothing to compare with\n")
        return
    print(header("model", "batch", "clip-train images/s", "MFU", "open_clip images/s", "times as fast"))
    for name, batch_size in _PEERS.items():
        bench.attempt(f"{name} beside open_clip", partial(beside_open_clip, bench, name, batch_size))
    print()


def beside_open_clip(bench: Bench, name: str, batch_size: int) -> None:
    ours, _ = our_step(bench, name, batch_size)
    flops = flops_of(ours)
    theirs = open_clip_step(bench, name, batch_size)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(_ROUNDS + 1):
        for way, step in enumerate((ours, theirs)):
            measured = bench.seconds(step, _TURN)
            if turn:  # the first warms up
                seconds[way].append(measured)
    mine, other = median(seconds[0]), median(seconds[1])
    numbers = f"{batch_size / mine:,.0f}", bench.mfu(flops, mine), f"{batch_size / other:,.0f}", f"{other / mine:.2f}"
    print(row(name, batch_size, *numbers), flush=True)


def chunks(bench: Bench) -> None:
    """A batch in chunks, with the gradient of the whole batch; and activation checkpointing."""
    preset, batch_size, chunk_size = ("tiny", 8, 4) if bench.smallest else _CHUNKED
    print(header("step", "batch", "images/s", "GiB"))
    ways = {
        "one forward pass": (chunk_size, None, False),
        f"chunks of {chunk_size}": (batch_size, chunk_size, False),
        "activation checkpointing": (chunk_size, None, True),
    }
    for name, (size, chunk, checkpointing) in ways.items():
        bench.clear()
        step, _ = our_step(bench, preset, size, chunk_size=chunk, checkpointing=checkpointing)
        bench.seconds(step, 1)
        seconds = bench.seconds(step, 1 if bench.smallest else 3)
        print(row(f"{preset}, {name}", size, f"{size / seconds:,.0f}", bench.memory()), flush=True)
        del step
    print()


def compiled(bench: Bench) -> None:
    """Both towers by torch.compile, which takes a minute or two first."""
    name = "ViT-B-16"
    batch_size = _PEERS[name]
    plain, _ = our_step(bench, name, batch_size)
    flops = flops_of(plain)
    step, network = our_step(bench, name, batch_size)
    network.image.compile()
    network.text.compile()
    began = time.perf_counter()
    bench.seconds(step, 2)
    first = time.perf_counter() - began
    turns = [(bench.seconds(plain, _TURN), bench.seconds(step, _TURN)) for _ in range(_ROUNDS)]
    before, after = (median(column) for column in zip(*turns, strict=True))
    print(header("torch.compile", "batch", "images/s", "MFU", "times as fast", "first two steps, s"))
    numbers = f"{batch_size / after:,.0f}", bench.mfu(flops, after), f"{before / after:.2f}", f"{first:.0f}"
    print(row(name, batch_size, *numbers))


def training_run(bench: Bench, run: Path) -> None:
    """clip-train on drawn shapes, stopped by a signal in the middle and resumed to the end."""
    small = ["--synthetic-count", "36", "--image-size", "32", "--layers", "1", "--width", "64", "--epochs", "12"]
    flags = ["--create-synthetic", "--data", str(run.parent / "shapes" / "dataset.json"), "--device", str(bench.device)]
    flags += [*small, "--batch-size", "16", "--log-every", "1"] if bench.smallest else ["--epochs", "20"]
    command = [sys.executable, "-m", "clip_core.cli.train", "--run-dir", str(run)]
    began = time.monotonic()
    first = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while first.poll() is None and not any(line["kind"] == "train" for line in RunReader(run).all_lines()):
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate()
    if first.returncode not in (0, 128 + signal.SIGTERM):
        raise RuntimeError(errors[-300:])
    status = RunReader(run).status()
    stopped_at = status.step if status else 0
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL, env=os.environ)
    status, best = RunReader(run).status(), RunReader(run).best()
    assert status is not None
    top1 = best.scores.get("zero_shot_top1") if best else None
    print(header("training run", "steps", "stopped at", "seconds of training", "zero-shot top-1", "seconds in all"))
    score = "-" if top1 is None else f"{top1:.1%}"
    numbers = status.steps, stopped_at, f"{status.train_seconds:.1f}", score, f"{time.monotonic() - began:.0f}"
    print(row("drawn shapes", *numbers), "\n", flush=True)


def onnx_runtime(bench: Bench, run: Path) -> None:
    """The bundle of that run: images/s of its image encoder in ONNX Runtime, on the GPU where it can."""
    import numpy as np
    import onnxruntime

    bundle = run.parent / "bundle"
    exported = subprocess.run(
        [sys.executable, "-m", "export.cli", str(run), "--out", str(bundle)], capture_output=True, text=True
    )
    if exported.returncode:
        raise RuntimeError(exported.stderr[-300:] or exported.stdout[-300:])
    wanted = ["CUDAExecutionProvider"] if bench.device.type == "cuda" else []
    there = [name for name in wanted if name in onnxruntime.get_available_providers()]
    if wanted and not there:
        print("ONNX Runtime: no CUDA provider in this installation, so on the CPU")
    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(
        bundle / "onnx" / "vision_model.onnx", providers=[*there, "CPUExecutionProvider"]
    )
    side, count = RunReader(run).record().model.preprocessing.image_size, 4 if bench.smallest else 256
    images = np.random.default_rng(0).standard_normal((count, 3, side, side), dtype=np.float32)
    inputs = {session.get_inputs()[0].name: images}
    bench.seconds(lambda: session.run(None, inputs), 1)
    seconds = bench.seconds(lambda: session.run(None, inputs), 2 if bench.smallest else 10)
    print(header("ONNX Runtime", "provider", "batch", "images/s"))
    print(row("image encoder of that run", session.get_providers()[0], count, f"{count / seconds:,.0f}"), "\n")


if __name__ == "__main__":
    sys.exit(main())
