"""config.json, validation.json and the first lines of the log."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from clip_core.config import TrainConfig
from clip_core.run.reader import RunReader
from clip_core.run.records import Decision
from clip_core.training.recipe import resolve_recipe
from clip_core.training.run_description import decision_line, recipe_line, trainable_line
from tests.training.conftest import Build, small_config
from tests.training.tiny import tiny, tiny_config, tiny_recipe


@pytest.mark.parametrize(
    ("setting", "value", "reason", "line"),
    [
        ("model_size", "nano", "fewer than 50,000 pairs", "preset nano (fewer than 50,000 pairs)"),
        ("vocab_size", 3000, "", "BPE vocabulary of 3,000 tokens"),
        ("optimizer", "adamw", "", "AdamW"),
        ("lr", 0.0005, "default for base", "peak learning rate 0.0005 (default for base)"),
        ("min_lr", 1.0, "", "constant learning rate"),
        ("min_lr", 0.01, "", "cosine decay to 0.01 of the peak"),
        ("warmup", 0.1, "", "10% linear warm-up"),
        ("weight_decay", 0.0, "", "no weight decay"),
        ("a_new_setting", 3, "why", "a new setting 3 (why)"),
    ],
)
def test_a_default_is_one_line_with_its_reason(setting: str, value: object, reason: str, line: str) -> None:
    assert decision_line(Decision(setting=setting, value=value, reason=reason)) == line


@pytest.mark.parametrize("pairs", [500, 5_000, 100_000])
def test_no_default_is_described_by_the_name_of_its_field(pairs: int) -> None:
    """Every setting that the recipe decides has a phrase of its own."""
    config = TrainConfig.model_validate({"run": {"device": "cpu"}})
    _, decisions = resolve_recipe(config, pairs, tiny_config(), epoch_pairs=pairs)
    assert decisions
    for decision in decisions:
        assert decision.setting not in decision_line(decision) or "_" not in decision.setting


def test_the_recipe_is_one_line_by_steps_or_by_minutes() -> None:
    steps = recipe_line(tiny_recipe(steps=40, warmup_steps=4, loss="sigmoid"))
    assert steps == (
        "40 steps of 8 pairs (4 per epoch), peak learning rate 0.001, 4 steps of warm-up, fp32 on cpu, "
        "evaluation every 4 steps, sigmoid loss"
    )
    assert "1 step of warm-up" in recipe_line(tiny_recipe())
    timed = recipe_line(tiny_recipe(steps=40, warmup_steps=4, seconds=90.0))
    assert timed == "1.5 minutes of 8 pairs (4 per epoch), peak learning rate 0.001, 10% of warm-up, fp32 on cpu"


def test_frozen_parameters_are_not_counted_as_trainable() -> None:
    model = tiny()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert trainable_line(model) == f"{total:,} trainable parameters (all)"
    model.image.requires_grad_(False)
    frozen = sum(parameter.numel() for parameter in model.image.parameters())
    assert trainable_line(model) == f"{total - frozen:,} trainable parameters of {total:,}"


def test_config_json_says_which_code_data_and_settings_a_run_has(build: Build, shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path / "run", run={"seed": 11}, optim={"weight_decay": 0.3})
    trainer = build(config)
    record = RunReader(tmp_path / "run").record()
    assert record.config == config
    assert record.seed == 11
    assert record.versions["python"] == platform.python_version()
    assert record.versions["torch"] == version("torch")
    assert record.model == trainer.train_step.model.config
    decided = {decision.setting for decision in record.decisions}
    assert {"lr", "optimizer", "min_lr"} <= decided
    assert not decided & {"weight_decay", "batch_size", "model_size"}  # these were given
    assert len(record.data.fingerprint) == 64
    pairs = [(pair.image, pair.caption) for pair in RunReader(tmp_path / "run").validation_pairs().pairs]
    val = trainer.validator.validation.pairs
    assert pairs == [
        (str(val.images[i]), val.captions[c]) for i, c in zip(val.pair_images, val.pair_captions, strict=True)
    ]


@pytest.mark.parametrize(("length", "truncated"), [(4, True), (77, False)])
def test_the_log_says_which_captions_are_truncated(
    length: int, truncated: bool, build: Build, shapes: Path, tmp_path: Path
) -> None:
    data: dict[str, Any] = {"context_length": length}
    trainer = build(small_config(shapes, tmp_path / "run", data=data))
    said = (tmp_path / "run" / "train.log").read_text()
    assert ("captions are longer than 4 tokens and are truncated; raise --context-length" in said) is truncated
    assert f"run {tmp_path / 'run'}: {recipe_line(trainer.schedule.recipe)}\n" in said
    assert "defaults chosen for 162 pairs on cpu:\n" in said
    assert "162 training pairs of 162 images, 18 validation pairs of 18 images\n" in said
