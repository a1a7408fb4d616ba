"""What the recipe makes of the data, the hardware and what was said; every choice with its reason."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clip_core.config import TrainConfig, architecture, parse_config
from clip_core.data.pairs import Pair
from clip_core.training.recipe import Recipe, planned, prepare, work_out


def config(precision: str = "bf16", **optim: Any) -> TrainConfig:
    return parse_config({"optim": optim, "run": {"device": "cpu", "precision": precision}})


def recipe(given: TrainConfig, pairs: int, *, classes: bool = False) -> Recipe:
    model = architecture(given.model, vocab_size=300, end_token=2, context_length=16, pairs=pairs)
    return work_out(given, pairs, model, epoch_pairs=pairs, classes=classes)


@pytest.mark.parametrize(
    ("pairs", "batch", "epochs", "smoothing", "left_out", "preset"),
    [
        (500, 16, 33, 0.1, 0.5, "nano"),
        (2_771, 128, 48, 0.1, 0.0, "nano"),
        (40_000, 128, 10, 0.1, 0.0, "nano"),
        (200_000, 128, 10, 0.0, 0.0, "tiny"),
    ],
)
def test_few_pairs_are_seen_often_and_never_alike(
    pairs: int, batch: int, epochs: int, smoothing: float, left_out: float, preset: str
) -> None:
    worked_out = recipe(config(), pairs)
    assert (worked_out.batch_size, worked_out.epochs) == (batch, epochs)
    assert worked_out.steps == worked_out.epochs * (pairs // batch)
    assert worked_out.warmup_steps == round(0.1 * worked_out.steps)
    assert worked_out.label_smoothing == smoothing
    assert worked_out.patch_dropout == worked_out.word_dropout == left_out
    assert f"preset {preset}, as" in worked_out.why


def test_classes_keep_every_word_and_share_nothing_with_each_other() -> None:
    worked_out = recipe(config(), 500, classes=True)
    assert worked_out.label_smoothing == worked_out.word_dropout == worked_out.patch_dropout == 0
    assert worked_out.bpe_dropout == 0


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
def test_the_learning_rate_stays_where_few_pairs_are_averaged_over(
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
def test_a_vocabulary_learnt_from_few_captions_is_met_in_pieces_too(data: dict, pairs: int, share: float) -> None:
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
def test_images_are_seen_larger_where_they_have_more_to_show(
    tmp_path: Path, side: int, model: dict[str, Any], seen: int
) -> None:
    Image.new("RGB", (side + 9, side)).save(tmp_path / "a.png")
    pairs = [Pair(tmp_path / "a.png", "a", 1)]
    assert prepare(parse_config({"model": model}), pairs).image_size == seen


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


def test_what_is_said_holds_and_needs_no_reason() -> None:
    worked_out = recipe(config(**GIVEN), 500)
    stored = worked_out.as_json() | {"epochs": worked_out.epochs}
    assert {name: stored[name] for name in GIVEN} == GIVEN
    left_open = recipe(config(), 500).why.split("; ")
    for words in (
        "pairs a step",
        "epochs",
        "peak learning rate",
        "does not fall",
        "Muon",
        "weight decay",
        "smoothing",
        "patches",
        "words",
        "pieces",
    ):
        assert words not in worked_out.why
        assert any(words in reason for reason in left_open)


def test_every_reason_says_why() -> None:
    for pairs, minutes in ((500, None), (500, 1), (2_771, 10), (200_000, None)):
        for reason in recipe(config(minutes=minutes), pairs).why.split("; "):
            assert any(word in reason for word in (" as ", " for ", " so that ")), reason


def test_a_plan_for_another_number_of_steps_keeps_its_proportions() -> None:
    given = config()
    longer = planned(recipe(given, 2_771), given, 5_000)
    assert (longer.steps, longer.warmup_steps) == (5_000, 500)
    assert longer.eval_every % longer.steps_per_epoch == 0
    assert 20 <= longer.steps / longer.eval_every <= 31
