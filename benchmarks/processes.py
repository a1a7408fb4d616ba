"""The same run with one process and with several: how far the losses are apart, step times, and a process killed.

    python -m benchmarks.processes [--processes 2] [--steps 40] [--layers 1] [--width 64] [clip-train flags ...]

A small network on drawn shapes. With --shard the processes divide it; memory is rank 0's, of which PyTorch takes most.
The last run loses a process by SIGKILL in the middle, and is resumed to the end.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.train_run import header, row
from clip_core.data.synthetic import create_synthetic
from clip_core.run.reader import RunReader

_PAIRS, _BATCH = 320, 32
_SMALL = ["--image-size", "32", "--precision", "fp32", "--device", "cpu"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    given, flags = parser.parse_known_args()
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
