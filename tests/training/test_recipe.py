"""The defaults that depend on data and hardware, and the record of each that was chosen automatically."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clip_core.config import TrainConfig, parse_config
from clip_core.data.pairs import Pair
from clip_core.errors import DataError
from clip_core.presets import architecture
from clip_core.run.records import Decision, Recipe
from clip_core.training.recipe import choose_preprocessing, resolve_recipe
from clip_core.training.run_description import decision_line, recipe_line


def config(precision: str = "bf16", **optim: Any) -> TrainConfig:
    return parse_config({"optim": optim, "run": {"device": "cpu", "precision": precision}})


def resolve(given: TrainConfig, pairs: int, *, classes: bool = False) -> tuple[Recipe, list[Decision]]:
    model = architecture(given.model, vocab_size=300, end_token=2, context_length=16, pairs=pairs)
    return resolve_recipe(given, pairs, model, epoch_pairs=pairs, classes=classes)


def recipe(given: TrainConfig, pairs: int, *, classes: bool = False) -> Recipe:
    return resolve(given, pairs, classes=classes)[0]


def lines_of(given: TrainConfig, pairs: int) -> list[str]:
    return [decision_line(decision) for decision in resolve(given, pairs)[1]]


@pytest.mark.parametrize(
    ("pairs", "batch", "epochs", "smoothing", "dropout", "preset"),
    [
        (500, 16, 33, 0.1, 0.5, "nano"),
        (2_771, 128, 48, 0.1, 0.0, "nano"),
        (40_000, 128, 10, 0.1, 0.0, "nano"),
        (200_000, 128, 10, 0.0, 0.0, "tiny"),
    ],
)
def test_small_sets_get_more_epochs_and_regularisation(
    pairs: int, batch: int, epochs: int, smoothing: float, dropout: float, preset: str
) -> None:
    resolved, decisions = resolve(config(), pairs)
    assert (resolved.batch_size, resolved.epochs) == (batch, epochs)
    assert resolved.steps == resolved.epochs * (pairs // batch)
    assert resolved.warmup_steps == round(0.1 * resolved.steps)
    assert resolved.label_smoothing == smoothing
    assert resolved.patch_dropout == resolved.word_dropout == dropout
    assert decisions[0].model_dump() == {
        "setting": "model_size",
        "value": preset,
        "reason": "fewer than 50,000 pairs" if preset == "nano" else "50,000 pairs or more",
    }


def test_classes_get_neither_dropout_nor_label_smoothing() -> None:
    resolved = recipe(config(), 500, classes=True)
    assert resolved.label_smoothing == resolved.word_dropout == resolved.patch_dropout == 0
    assert resolved.bpe_dropout == 0


@pytest.mark.parametrize(
    ("given", "pairs", "classes", "floor"),
    [
        ({}, 500, False, 1.0),
        ({}, 40_000, False, 1.0),
        ({}, 200_000, False, 0.01),
        ({}, 500, True, 0.01),
        ({"tune": {"ema": 0}}, 500, False, 0.01),
        ({"optim": {"min_lr": 0.5}}, 500, False, 0.5),
        ({"optim": {"min_lr": 0}, "tune": {"ema": 0.99}}, 500, False, 0.0),
    ],
)
def test_the_learning_rate_is_constant_for_small_sets_with_ema(
    given: dict, pairs: int, classes: bool, floor: float
) -> None:
    run = {"device": "cpu", "precision": "bf16"}
    assert recipe(parse_config(given | {"run": run}), pairs, classes=classes).min_lr == floor


@pytest.mark.parametrize(
    ("data", "pairs", "share"),
    [
        ({}, 500, 0.1),
        ({"tokenizer": "bpe"}, 40_000, 0.1),
        ({"tokenizer": "char"}, 500, 0.0),
        ({"tokenizer": "clip/tokenizer.json"}, 500, 0.0),
        ({"create_synthetic": True}, 500, 0.0),
        ({}, 200_000, 0.0),
    ],
)
def test_bpe_dropout_is_for_vocabularies_trained_on_few_captions(data: dict, pairs: int, share: float) -> None:
    given = parse_config({"data": data, "run": {"device": "cpu", "precision": "bf16"}})
    assert recipe(given, pairs).bpe_dropout == share


@pytest.mark.parametrize(
    ("side", "model", "seen"),
    [
        (128, {}, 128),
        (95, {}, 64),
        (500, {"image_size": 48}, 48),
        (500, {"patch_size": 8}, 64),
        (500, {"model_size": "tiny"}, 64),
        (500, {"model_size": "nano"}, 128),
        (500, {"stem": "patch"}, 64),
        (500, {"model_size": "tiny", "stem": "conv"}, 64),
        (500, {"model_size": "ViT-B-32"}, 224),
    ],
)
def test_the_image_size_is_larger_for_large_images_and_a_convolutional_stem(
    tmp_path: Path, side: int, model: dict[str, Any], seen: int
) -> None:
    Image.new("RGB", (side + 9, side)).save(tmp_path / "a.png")
    pairs = [Pair(str(tmp_path / "a.png"), "a", 1)]
    assert choose_preprocessing(parse_config({"model": model}), pairs).image_size == seen


def test_muon_only_where_there_is_bf16() -> None:
    assert recipe(config("bf16"), 500).optimizer == "muon"
    assert recipe(config("fp32"), 500).optimizer == "adamw"


GIVEN = {
    "batch_size": 64,
    "epochs": 3,
    "lr": 2e-3,
    "optimizer": "adamw",
    "weight_decay": 0.2,
    "label_smoothing": 0.3,
    "patch_dropout": 0.25,
    "word_dropout": 0.75,
    "bpe_dropout": 0.3,
    "min_lr": 0.2,
}


def test_what_was_given_is_used_and_is_no_decision() -> None:
    resolved, decisions = resolve(config(**GIVEN), 500)
    stored = resolved.model_dump() | {"epochs": resolved.epochs}
    assert {name: stored[name] for name in GIVEN} == GIVEN
    assert not GIVEN.keys() & {decision.setting for decision in decisions}
    assert GIVEN.keys() <= {decision.setting for decision in resolve(config(), 500)[1]}


def test_the_value_of_each_decision_is_the_resolved_one() -> None:
    for pairs in (500, 2_771, 200_000):
        resolved, decisions = resolve(config(), pairs)
        stored = resolved.model_dump() | {"epochs": resolved.epochs}
        values = {decision.setting: decision.value for decision in decisions if decision.setting in stored}
        assert values == {name: stored[name] for name in values}
        assert len(values) >= 7


def test_decisions_read_as_short_lines_with_numbers() -> None:
    assert lines_of(config(), 2_947) == [
        "preset nano (fewer than 50,000 pairs)",
        "BPE vocabulary of 300 tokens (learned from the captions)",
        "batch size 128 (about 16 steps per epoch, 16 to 128 on a CPU)",
        "Muon (about half the steps of AdamW)",
        "peak learning rate 0.001 (default for nano)",
        "constant learning rate (EMA replaces decay)",
        "10% linear warm-up",
        "weight decay 0.1 (default for training from scratch)",
        "random crops of at least 80% of a side, keyword lists shuffled and thinned (captions remain correct)",
        "BPE dropout 0.1",
        "label smoothing 0.1 (fewer than 50,000 pairs)",
        "EMA of the weights, decay 0.9999 (evaluated and saved in place of the raw weights)",
        "44 epochs (about 1,000 steps, 10 to 60 epochs)",
    ]


def test_every_decision_but_plain_defaults_has_a_reason() -> None:
    for pairs, minutes in ((500, None), (500, 1), (2_771, 10), (200_000, None)):
        for decision in resolve(config(minutes=minutes), pairs)[1]:
            assert decision.reason or decision.setting in ("warmup", "bpe_dropout"), decision
            assert "{" not in decision_line(decision)


def test_the_recipe_in_one_line() -> None:
    line = recipe_line(recipe(config(), 2_947))
    assert line.startswith("1012 steps of 128 pairs (23 per epoch), peak learning rate 0.001, 101 steps of warm-up")
    assert recipe_line(recipe(config(minutes=2), 2_947)).startswith("2 minutes of 128 pairs")


def test_one_pair_is_refused_in_one_sentence_and_two_are_a_batch() -> None:
    with pytest.raises(DataError, match="needs at least 2 training pairs, and there is 1; add pairs, or give"):
        recipe(config(), 1)
    assert recipe(config(), 2).batch_size == 2
