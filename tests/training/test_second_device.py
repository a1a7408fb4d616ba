"""Whole runs on a device beside the CPU: equal numbers, nothing mixed, and no waiting within steps."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests import forked
from tests.conftest import clip_train, command_environment
from tests.encoders import image_folder, text_folder
from tests.running import latest, lines
from tests.second_device import NAME

COMMON = ["--epochs", "3", "--eval-every", "15", "--batch-size", "32", "--log-every", "5", "--precision", "fp32"]
REPORTS = 4  # of steps 1, 5, 10 and 15


def both(flags: Sequence[str], data: Path, folder: Path) -> dict[str, int]:
    """Train on the CPU and on the other device; returns what the latter waited for."""
    flags = ["--data-file", str(data), *COMMON, *flags]
    on_cpu = clip_train(*flags, "--run-dir", "cpu", "--device", "cpu", cwd=folder)
    assert on_cpu.returncode == 0, on_cpu.stderr
    environment = command_environment()
    there = forked.start(
        "tests.second_device", *flags, "--run-dir", NAME, cwd=folder, environment=environment, out=subprocess.PIPE
    )
    out, errors = there.communicate()
    assert there.returncode == 0, errors + out
    assert f"fp32 on {NAME}:0" in out
    waits: dict[str, int] = json.loads(out.splitlines()[-1])
    return waits


def compare(folder: Path) -> None:
    one, other = folder / "cpu", folder / NAME
    for kind, names in {"train": ("loss", "grad_norm", "logit_scale"), "eval": ("val_loss", "mean_recall")}.items():
        measured = [[[line[name] for name in names] for line in lines(run, kind)] for run in (one, other)]
        assert len(measured[0]) == (REPORTS if kind == "train" else 2)
        for expected, found in zip(*measured, strict=True):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    weights, others = (load_file(latest(run) / "model.safetensors") for run in (one, other))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert others[name] == pytest.approx(value, rel=1e-3, abs=5e-4), name  # half an update, which rounding can turn


def assert_no_waiting_within_steps(waits: dict[str, int]) -> None:
    """The host reads what is reported, whether losses are finite, and what is evaluated and saved."""
    places = {"evaluate.py", "checkpoint.py", "frozen_features.py", "transformers_models.py"}
    within = {line: count for line, count in waits.items() if line.partition(":")[0] not in places}
    reported = sum(count for line, count in within.items() if line.startswith("trainer.py: self.reporter.step("))
    assert reported == 7 * REPORTS  # numbers
    checked = sum(count for line, count in within.items() if "in zip(checked, *finite.cpu().tolist()" in line)
    assert 1 <= checked <= 3  # after 10 steps, and before each of the two saves
    assert reported + checked == sum(within.values()), within


def test_a_run_from_scratch(shapes: Path, tmp_path: Path) -> None:
    small = ["--image-size", "32", "--model-size", "nano", "--layers", "1", "--width", "64", "--hard-negatives"]
    waits = both([*small, "--optimizer", "muon", "--patch-dropout", "0.5", "--ema", "0.9"], shapes, tmp_path)
    compare(tmp_path)
    assert_no_waiting_within_steps(waits)


def test_heads_on_frozen_encoders_in_chunks(shapes: Path, tmp_path: Path) -> None:
    image_folder(tmp_path / "dinov2", "dinov2")
    text_folder(tmp_path / "bert", "bert", pooling="mean_tokens")
    encoders = ["--image-encoder", str(tmp_path / "dinov2"), "--text-encoder", str(tmp_path / "bert")]
    heads = ["--head-width", "16", "--embed-dim", "24", "--head-dropout", "0", "--structure", "0.1", "--views", "2"]
    waits = both([*encoders, *heads, "--chunk-size", "20"], shapes, tmp_path)
    compare(tmp_path)
    assert_no_waiting_within_steps(waits)
