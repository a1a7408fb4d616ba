"""The memory of a run before its first step: what is counted, what is measured, and the batch that fits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from clip_core.training.activation_memory import saved_bytes
from clip_core.training.memory import MemoryEstimate, available_memory, estimate_memory
from clip_core.training.trainer import Trainer
from tests.training.conftest import Build, small_config

GB = 10**9


@pytest.fixture
def trainer(build: Build, shapes: Path, tmp_path: Path) -> Trainer:
    return build(small_config(shapes, tmp_path / "run"))


def test_what_the_first_step_adds_is_what_the_optimiser_and_the_gradients_take(trainer: Trainer) -> None:
    step, batch = trainer.train_step, trainer.batches(0)
    random = torch.get_rng_state()
    estimate = estimate_memory(step, batch)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in step.model.parameters())
    trained = sum(4 * parameter.numel() for parameter in step.model.parameters())
    assert estimate.weights >= 2 * trained  # and those of the EMA
    step(batch, 0, 1e-3)
    moments = sum(value.numel() * 4 for name, value in step.optimiser.tensors().items() if "exp_avg" in name)
    assert estimate.state == trained + moments
    assert estimate.batch_size == 32


def test_a_linear_layer_saves_its_input_and_not_its_weight() -> None:
    layer = nn.Linear(10, 20)
    values = torch.ones(3, 10)
    assert saved_bytes(layer, lambda: layer(values)) == 3 * 10 * 4


def test_a_pair_of_larger_images_and_longer_captions_takes_more(trainer: Trainer) -> None:
    step, batch = trainer.train_step, trainer.batches(0)
    plain = estimate_memory(step, batch).per_pair
    longer = replace(batch, input_ids=tuple(group.repeat(1, 2) for group in batch.input_ids))
    assert plain < estimate_memory(step, longer).per_pair < 3 * plain


def test_the_largest_batch_is_the_last_that_fits() -> None:
    estimate = MemoryEstimate(weights=GB, state=2 * GB, per_pair=10e6, available=4 * GB, batch_size=64)
    largest = estimate.largest_batch
    assert estimate.of_step(largest) <= estimate.available < estimate.of_step(largest + 1)
    assert 190 <= largest <= 200
    assert estimate.warning() is None
    assert "64 adds about 2.6 GB of 4.0 GB available, and the largest that fits is about 190" in estimate.line()


def test_a_batch_that_does_not_fit_is_a_warning_with_the_one_that_does() -> None:
    estimate = MemoryEstimate(weights=GB, state=2 * GB, per_pair=10e6, available=4 * GB, batch_size=4096)
    assert "use --chunk-size 118" in str(estimate.warning())  # in 35 chunks
    for_logits_alone = replace(estimate, batch_size=65536)
    assert "use --batch-size 190" in str(for_logits_alone.warning())
    assert "use a smaller model" in str(replace(estimate, available=GB).warning())


def test_some_memory_is_available() -> None:
    assert available_memory(torch.device("cpu")) > 10**6


def test_the_log_has_the_estimate(trainer: Trainer) -> None:
    trainer.estimate_memory()
    assert "the largest that fits is about" in trainer.writer.paths.log.read_text()
