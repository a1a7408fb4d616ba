"""--on-nan rollback: the run goes on from its last checkpoint without the batches that led to the NaN."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clip_core.model.checkpoint import load_model, valid_checkpoints
from clip_core.model.clip import Embeddings
from clip_core.run.records import State
from clip_core.training.batches import Batch
from clip_core.training.signals import Signals
from clip_core.training.trainer import Trainer
from tests.conftest import SHORT_RUN, clip_train
from tests.running import assert_same_run, lines
from tests.training.conftest import Build, small_config

IMAGE = 7  # in one batch of each epoch


def poisoned(trainer: Trainer) -> Trainer:
    """The loss of a batch with IMAGE is NaN."""
    loss_of = trainer.train_step.loss_of

    def nan(embeddings: Embeddings, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, measured = loss_of(embeddings, batch)
        return loss * (torch.nan if IMAGE in batch.image_ids else 1), measured

    trainer.train_step.loss_of = nan  # type: ignore[method-assign]
    return trainer


def train(trainer: Trainer) -> State:
    with Signals() as signals:
        return trainer.train(signals)


@pytest.mark.parametrize("chunk_size", [None, 8])
@pytest.mark.fault("NaN in loss or gradient")
def test_it_goes_on_without_the_batches_and_a_kill_at_once_changes_nothing(
    chunk_size: int | None, build: Build, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {
        "run": {"on_nan": "rollback", "checkpoint_every": 2, "eval_every": 5, "log_every": 1, "keep_checkpoints": 99},
        "optim": {"chunk_size": chunk_size},
        "tune": {"ema": 0.9},
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer = poisoned(build(small_config(shapes, whole, **how)))
    steps_per_epoch = trainer.schedule.recipe.steps_per_epoch
    bad = int((trainer.batches.order.batches(0) == IMAGE).any(axis=1).argmax())
    assert train(trainer) is State.FINISHED
    rollbacks = [line for line in lines(whole, "event") if "rolled back" in line["message"]]
    assert len(rollbacks) == trainer.progress.rollbacks >= 1
    assert all(line["health"] and line["pace"] == "restart" for line in rollbacks)
    assert rollbacks[0]["step"] == bad // 2 * 2
    assert trainer.progress.skipped_batches > bad % 2
    assert trainer.batches.pairs.names[IMAGE] in (whole / "train.log").read_text()
    steps = [line["step"] for line in lines(whole, "train")]
    assert steps == list(range(1, 2 * steps_per_epoch + 1))
    assert all(line["loss"] is not None for line in lines(whole, "train"))
    load_model(whole)  # refuses weights that are not finite

    def killed(self: Trainer, error: Exception) -> None:
        roll_back(self, error)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    roll_back = Trainer.roll_back
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "roll_back", killed)
        with pytest.raises(KeyboardInterrupt):
            train(poisoned(build(small_config(shapes, parts, **how))))
    trainer = poisoned(build(small_config(shapes, parts, **how), resume=True))
    trainer.resume()
    assert (trainer.progress.rollbacks, trainer.progress.step) == (1, rollbacks[0]["step"])
    assert train(trainer) is State.FINISHED
    assert_same_run(whole, parts)


@pytest.mark.fault("NaN in loss or gradient")
def test_a_learning_rate_that_is_too_high_is_rolled_back_five_times_and_then_stopped(
    shapes: Path, tmp_path: Path
) -> None:
    flags = ["--epochs", "50", *SHORT_RUN[2:], "--checkpoint-every", "1000", "--eval-every", "1000"]
    high = ["--lr", "1", "--warmup", "0", "--grad-clip", "1e30", "--weight-decay", "10"]
    data = ["--data-file", str(shapes), "--run-dir", "run"]
    done = clip_train(*data, *flags, *high, cwd=tmp_path)
    assert done.returncode == 4
    assert "or resume the run with --on-nan rollback" in done.stderr
    data[3] = "again"
    done = clip_train(*data, *flags, *high, "--on-nan", "rollback", cwd=tmp_path)
    assert done.returncode == 4
    assert "after 5 rollbacks; no checkpoint holds it. The batches are not the cause" in done.stderr
    assert done.stdout.count("rolled back to step 0") == 5
    assert [folder.name for folder in valid_checkpoints(tmp_path / "again")] == ["step_0000000"]
