"""The same run with one process and with several: how far the losses are apart, step times, and a process killed.

    python -m benchmarks.processes [--processes 2] [--steps 40] [--layers 1] [--width 64] [clip-train flags ...]

A small network on drawn shapes. With --shard the processes divide it; memory is rank 0's, of which PyTorch takes most.
The last run loses a process by SIGKILL in the middle, and is resumed to the end.

    python -m benchmarks.processes --alternating [--processes 2] [--layers 1] [--width 64]

Steps of DDP and of --shard alone, in turn, in the same processes.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torch.distributed
import torch.multiprocessing

from benchmarks.train_run import header, row
from clip_core.config import parse_config
from clip_core.data.synthetic import create_synthetic
from clip_core.model.clip import CLIP
from clip_core.presets import architecture
from clip_core.run.reader import RunReader
from clip_core.training.batches import Batch
from clip_core.training.ranks import Rank
from clip_core.training.recipe import resolve_recipe
from clip_core.training.train_step import TrainStep

_PAIRS, _BATCH = 320, 32
_WARM, _TIMED = 3, 10  # steps
_SMALL = ["--image-size", "32", "--precision", "fp32", "--device", "cpu"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--alternating", action="store_true")
    given, flags = parser.parse_known_args()
    if given.alternating:
        torch.multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
            alternate, (given.processes, _free_port(), given.layers, given.width), nprocs=given.processes
        )
        return
    flags += ["--layers", str(given.layers), "--width", str(given.width)]
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "shapes" / "dataset.json"
        create_synthetic(data, count=_PAIRS, seed=0, size=32)
        epochs = max(given.steps * _BATCH // (_PAIRS * 9 // 10), 1)
        flags = ["--data", str(data), *_SMALL, "--batch-size", str(_BATCH), "--epochs", str(epochs), *flags]
        flags += ["--log-every", "1", "--checkpoint-every", "5", "--eval-every", "1000"]
        print(header("processes", "steps", "ms a step", "MB", "largest difference of a loss", "last loss"))
        runs: dict[str, list[dict[str, Any]]] = {}
        for name, devices, more, killed in (
            ("1", 1, [], False), (str(given.processes), given.processes, [], False),
            (f"{given.processes}, --shard", given.processes, ["--shard"], False),
            (f"{given.processes}, one killed, resumed", given.processes, [], True),
        ):  # fmt: skip
            run = Path(scratch) / f"run-{len(runs)}"
            train(run, [*flags, *more], devices, killed=killed)
            runs[name] = lines = [line for line in RunReader(run).all_lines() if line["kind"] == "train"]
            apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(runs["1"], lines, strict=True))
            pace = median(1000 * _BATCH / line["images_per_second"] for line in lines)
            memory = max(line["memory_mb"] for line in lines)
            print(row(name, len(lines), f"{pace:.0f}", f"{memory:.0f}", f"{apart:.1e}", lines[-1]["loss"]), flush=True)


def alternate(number: int, processes: int, port: int, layers: int, width: int) -> None:
    """Time steps of DDP and of a divided network in turn, as one of the processes."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=number, world_size=processes)
    rank = Rank(number, processes)
    seconds: dict[str, list[float]] = {"DDP": [], "--shard": []}
    steps = {name: _step(rank, layers, width, shard=name == "--shard") for name in seconds}
    for _ in range(_WARM + _TIMED):
        for name, (step, batch, lr) in steps.items():
            torch.distributed.barrier()
            started = time.perf_counter()
            step(batch, 0, lr)
            torch.distributed.barrier()
            seconds[name].append(time.perf_counter() - started)
    if rank.writes:
        ddp, sharded = (1000 * median(seconds[name][_WARM:]) for name in seconds)
        parameters = sum(parameter.numel() for parameter in steps["DDP"][0].model.parameters())
        print(header("parameters", "ms a step, DDP", "ms a step, --shard", "ratio"))
        print(row(f"{parameters:,}", f"{ddp:.0f}", f"{sharded:.0f}", f"{sharded / ddp:.1f}"), flush=True)
    torch.distributed.destroy_process_group()


def _step(rank: Rank, layers: int, width: int, *, shard: bool) -> tuple[TrainStep, Batch, float]:
    """A step, its pairs of this rank and its learning rate."""
    model = {"model_size": "tiny", "image_size": 32, "layers": layers, "width": width}
    run = {"device": "cpu", "precision": "fp32", "shard": shard}
    config = parse_config({"model": model, "optim": {"batch_size": _BATCH}, "run": run})
    network = architecture(config.model, vocab_size=1000, end_token=999, context_length=16)
    recipe, _ = resolve_recipe(config, 1000, network, epoch_pairs=1000, processes=rank.size)
    ids = torch.arange(_BATCH)
    own = ids[rank.part(_BATCH)]
    captions = torch.randint(1, 999, (len(own), 16))
    captions[:, -1] = 999
    images = torch.randint(0, 256, (len(own), 32, 32, 3), dtype=torch.uint8)
    batch = Batch(images, (captions,), torch.arange(len(own)), own, own, ids, ids)
    return TrainStep(CLIP(network), recipe, config, rank), batch, recipe.lr


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def train(run: Path, flags: list[str], devices: int, *, killed: bool) -> None:
    command = [sys.executable, "-m", "clip_core.cli.train", "--run-dir", str(run), "--devices", str(devices)]
    child = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if killed:
        while child.poll() is None and RunReader(run).latest() is None:
            time.sleep(0.05)
        workers = [one for one in psutil.Process(child.pid).children() if one.environ().get("RANK")]
        os.kill(max(workers, key=lambda one: int(one.environ()["RANK"])).pid, signal.SIGKILL)
        child.communicate()
        child = subprocess.Popen([*command, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _, errors = child.communicate()
    if child.returncode:
        raise SystemExit(errors)


if __name__ == "__main__":
    main()
