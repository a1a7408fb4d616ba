"""Helpers for run directories."""

import os
import socket
import time
from pathlib import Path

import pytest

from clip_core.config import TrainConfig
from clip_core.presets import architecture
from clip_core.run.records import DataFacts, Decision, Parameters, Recipe, RunRecord
from clip_core.run.writer import RunWriter

HOST = socket.gethostname()


@pytest.fixture
def writer(tmp_path: Path) -> RunWriter:
    """The writer of an empty run directory."""
    return RunWriter(tmp_path / "run")


def run_record() -> RunRecord:
    """A complete configuration, as a trainer writes it."""
    recipe = Recipe(
        device="cpu", precision="fp32", batch_size=64, lr=1e-3, steps_per_epoch=10, steps=100, warmup_steps=10,
        eval_every=10, checkpoint_every=10, weight_decay=0.1, layer_decay=1.0, ema=0.99,
    )  # fmt: skip
    config = TrainConfig()
    return RunRecord(
        config=config,
        resolved=recipe,
        decisions=[Decision(setting="preset", value="nano", reason="fewer than 50,000 pairs")],
        model=architecture(config.model, vocab_size=100, end_token=1, context_length=16),
        parameters=Parameters(image=10, text=20, trainable=30),
        data=DataFacts(train_pairs=90, train_images=90, val_pairs=10, val_images=10),
        device_name="cpu, 2 cores",
        seed=0,
    )


def touch(path: Path, age: float) -> None:
    """Let a file be `age` seconds old."""
    os.utime(path, (time.time() - age,) * 2)
