"""A real trainer in a process of its own, and what its run directory says."""

import multiprocessing
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from clip_core.run.reader import RunReader
from clip_core.run.requests import RequestKind
from tests import forked
from tests.conftest import command_environment
from tests.forked import Forked

# A run of 36 images whose steps take a few milliseconds.
SMALL = [
    "--create-synthetic", "--synthetic-count", "36", "--synthetic-size", "32", "--image-size", "32",
    "--model-size", "nano", "--layers", "1", "--width", "64", "--device", "cpu", "--precision", "fp32",
]  # fmt: skip


Child = subprocess.Popen[str] | Forked


def start(*flags: str, cwd: Path, out: int = subprocess.DEVNULL, err: int = subprocess.PIPE) -> Forked:
    """clip-train in a process of its own; `out` and `err` are as those of Popen."""
    return forked.start("clip_core.cli.train", *flags, cwd=cwd, environment=command_environment(), out=out, err=err)


def forked_with_torch() -> multiprocessing.context.ForkServerContext:
    """Starts functions in processes forked from one that has imported PyTorch, which takes each of them two seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "clip_core.training.session"])
    return context


def lines(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or those of a kind."""
    return [line for line in RunReader(run).all_lines() if kind is None or line["kind"] == kind]


def latest(run: Path) -> Path:
    """The folder of the latest checkpoint."""
    pointer = RunReader(run).latest()
    assert pointer is not None
    return run / "checkpoints" / pointer.checkpoint


def figures(run: Path) -> list[tuple[object, ...]]:
    """What a run measured, without what depends on the clock or on when it was interrupted."""
    measured = [m for m in lines(run) if m["kind"] in ("train", "eval")]
    keys = ("kind", "step", "loss", "grad_norm", "lr", "val_loss", "mean_recall")
    return sorted(tuple(m.get(key) for key in keys) for m in measured)


def assert_same_run(one: Path, other: Path) -> None:
    """The same last checkpoint, bit for bit, and the same figures."""
    last = [latest(run) for run in (one, other)]
    for name in ("model.safetensors", "state.safetensors"):
        first, second = load_file(last[0] / name), load_file(last[1] / name)
        assert first.keys() == second.keys()
        assert all(first[key].tobytes() == second[key].tobytes() for key in first)
    assert figures(one) == figures(other)


def wait_until(happened: Callable[[], object], child: Child | None = None, seconds: float = 120) -> None:
    deadline = time.time() + seconds
    while not happened():
        assert time.time() < deadline, "it did not happen in time"
        if child is not None and child.poll() is not None:
            assert happened(), child.stderr.read() if child.stderr else f"exit code {child.returncode}"
        time.sleep(0.02)


def wait_for_step(run: Path, step: int, child: Child) -> None:
    wait_until(lambda: any(line["step"] >= step for line in lines(run, "train")), child)


def answer(run: Path, kind: RequestKind, child: Child) -> dict[str, Any]:
    """Make a request and wait for its acknowledgement."""
    return acknowledgement(run, RunReader(run).ask(kind).id, child)


def acknowledgement(run: Path, request: str, child: Child) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def acknowledged() -> bool:
        found[:] = [line for line in lines(run, "event") if line.get("request") == request]
        return bool(found)

    wait_until(acknowledged, child)
    assert len(found) == 1
    return found[0]
