"""Warnings about runs that go wrong, and none about a run that goes well."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_core.config import LossName
from clip_core.run.metrics import SECOND
from clip_core.training.evaluate import mean_cosine
from clip_core.training.health import Health
from clip_core.training.loss import SigmoidLoss
from clip_core.training.recipe import Recipe

CHANCE = math.log(64)
SIGMOID_CHANCE = float(SigmoidLoss.chance(torch.eye(64, dtype=torch.bool)))
WELL = {"chance": CHANCE, "logit_scale": 20.0, "data_wait": 0.01, "repeated_captions": 0.1}
SCORES = {"mean_recall": 0.3, "val_loss": 2.0, "image_mean_cosine": 0.2, "text_mean_cosine": 0.1}


def health(classes: bool = False, loss: LossName = "softmax") -> Health:
    recipe = Recipe(
        device="cpu", precision="fp32", batch_size=64, lr=1e-3, steps_per_epoch=10, steps=100, warmup_steps=10,
        eval_every=10, checkpoint_every=10, weight_decay=0.1, layer_decay=1.0, loss=loss,
    )  # fmt: skip
    return Health(recipe, classes, max_logit_scale=1000.0 if loss == "sigmoid" else 100.0)


def reported(watch: Health, losses: list[float], **measured: float) -> list[str]:
    """All warnings of a run with these losses, ten steps apart."""
    return [said for n, loss in enumerate(losses) for said in watch.report(10 * n, WELL | {"loss": loss} | measured)]


def test_a_run_that_goes_well_gets_no_warning() -> None:
    watch = health()
    assert (
        reported(health(), [9.5, 9.0, 8.0, 6.5, 5.5, 5.0, CHANCE, CHANCE, 4.1]) == []
    )  # fine-tuned from overconfident weights
    assert reported(watch, [CHANCE, CHANCE, 3.5, 3.0, 2.5, 2.0, 1.8, 1.7]) == []
    assert [said for n in range(9) for said in watch.evaluation(n, SCORES)] == []


@pytest.mark.parametrize(
    ("losses", "measured", "said"),
    [
        ([CHANCE] * 9, {}, "stays at chance (ln 64 = 4.159)"),
        ([4.5] * 9, {"chance": 4.5}, "stays at chance (4.500, the loss of equal similarities)"),
        ([CHANCE, 3.9, 3.5, 3.6, 4.0, *[5.4] * 5], {}, "too high"),
        ([3.0] * 9, {"logit_scale": 100.0}, "temperature is at its limit"),
        ([3.0] * 9, {"logit_scale": 1.0}, "lower limit"),
        ([3.0] * 9, {"data_wait": 0.6}, "data wait 60.0%"),
        ([3.0] * 9, {"repeated_captions": 0.9}, "share their caption"),
    ],
)
def test_each_warning_is_given_once(losses: list[float], measured: dict[str, float], said: str) -> None:
    (warning,) = reported(health(), losses, **measured)
    assert said in warning


def guarded(recall: float) -> dict[str, float]:
    """Scores with this recall@1 on the second validation set."""
    return SCORES | {f"{SECOND}image_to_text_recall@1": recall, f"{SECOND}text_to_image_recall@1": recall}


def test_a_fall_by_more_than_a_third_on_the_second_validation_set_is_forgetting() -> None:
    watch, before = replace(health(), guard_chance=0.05), guarded(0.6)
    assert [said for n in range(3) for said in watch.evaluation(n, guarded(0.41), before)] == []
    (warning,) = (said for n in range(3, 6) for said in watch.evaluation(n, guarded(0.39), before))
    assert "forgetting: recall@1 on the second validation set fell from 60% (initial weights) to 39%" in warning


def test_initial_weights_near_chance_have_nothing_to_forget() -> None:
    watch, before = replace(health(), guard_chance=0.05), guarded(0.09)
    assert watch.evaluation(1, guarded(0.01), before) == []
    assert "near chance on the second validation set (recall@1 9%, chance 5%)" in str(watch.useless_guard(before))
    assert watch.useless_guard(guarded(0.6)) is watch.useless_guard(SCORES) is None


def test_with_the_sigmoid_loss_chance_is_that_of_one_constant_answer() -> None:
    (stuck,) = reported(health(loss="sigmoid"), [SIGMOID_CHANCE] * 9, chance=SIGMOID_CHANCE)
    assert "stays at chance (5.151, the loss of one constant answer)" in stuck
    (risen,) = reported(health(loss="sigmoid"), [SIGMOID_CHANCE, 4.5, 4.0, *[7.0] * 6], chance=SIGMOID_CHANCE)
    assert "has risen to 7.000, above chance (5.151, the loss" in risen
    assert reported(health(loss="sigmoid"), [SIGMOID_CHANCE, 5.0, *[CHANCE] * 7], chance=SIGMOID_CHANCE) == []


def test_the_limit_of_the_temperature_is_that_of_the_weights() -> None:
    assert reported(health(loss="sigmoid"), [3.0] * 9, logit_scale=117.0) == []
    (said,) = reported(health(loss="sigmoid"), [3.0] * 9, logit_scale=1000.0)
    assert "at its limit (logit scale 1000)" in said


def test_repeated_captions_of_classes_are_normal() -> None:
    assert reported(health(classes=True), [3.0] * 9, repeated_captions=1.0) == []


def test_falling_recall_is_overfitting() -> None:
    watch = health()
    warnings = [
        said
        for step, recall in enumerate([0.1, 0.3, 0.29, 0.26, 0.25, 0.24])
        for said in watch.evaluation(step, SCORES | {"mean_recall": recall})
    ]
    assert len(warnings) == 1
    assert "best mean recall 30.0% at step 1, now 24.0%" in warnings[0]


def test_overfitting_is_measured_by_the_metric_that_chooses_the_best_checkpoint() -> None:
    watch = health(classes=True)
    accuracies = [0.5, 0.9, 0.9, 0.7, 0.7, 0.7]
    losses = [3.0, 2.5, 2.0, 2.1, 2.1, 2.1]  # between equal accuracies, the lower validation loss is better
    warnings = [
        warning
        for step, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True))
        for warning in watch.evaluation(step, SCORES | {"zero_shot_top1": accuracy, "val_loss": loss})
    ]
    assert len(warnings) == 1
    assert "best zero-shot top-1 90.0% at step 2, now 70.0%" in warnings[0]


def test_a_loss_of_chance_of_zero_is_no_error_and_no_warning() -> None:
    assert reported(health(), [0.0] * 9, chance=0.0) == []


@pytest.mark.parametrize(("name", "tower"), [("image_mean_cosine", "images"), ("text_mean_cosine", "captions")])
def test_a_tower_whose_embeddings_are_all_alike_has_collapsed(name: str, tower: str) -> None:
    assert health().evaluation(10, SCORES | {name: 0.999}) == []  # normal for a new network
    (said,) = health().evaluation(60, SCORES | {name: 0.999})
    assert f"all {tower} have nearly the same embedding" in said


def test_mean_cosine_is_that_of_all_pairs_of_different_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    assert mean_cosine(rows) == pytest.approx(cosines[~np.eye(7, dtype=bool)].mean(), abs=1e-6)
    assert mean_cosine(rows[:1]) == 0.0
