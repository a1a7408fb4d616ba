"""What is said of a run that goes wrong, and that nothing is said of one that goes well."""

import math

import numpy as np
import pytest
import torch

from clip_core.config import LossName
from clip_core.training.evaluate import mean_cosine
from clip_core.training.health import Health
from clip_core.training.loss import SigmoidLoss
from clip_core.training.recipe import Recipe

CHANCE = math.log(64)
SIGMOID_CHANCE = float(SigmoidLoss.chance(torch.eye(64, dtype=torch.bool)))
WELL = {"chance": CHANCE, "logit_scale": 20.0, "data_wait": 0.01, "repeated_captions": 0.1}
SCORES = {"mean_recall": 0.3, "image_mean_cosine": 0.2, "text_mean_cosine": 0.1}


def health(classes: bool = False, loss: LossName = "softmax") -> Health:
    recipe = Recipe(
        device="cpu", precision="fp32", batch_size=64, lr=1e-3, steps_per_epoch=10, steps=100, warmup_steps=10,
        eval_every=10, checkpoint_every=10, weight_decay=0.1, layer_decay=1.0, loss=loss,
    )  # fmt: skip
    return Health(recipe, classes, max_logit_scale=1000.0 if loss == "sigmoid" else 100.0)


def reported(watch: Health, losses: list[float], **measured: float) -> list[str]:
    """Everything said in a run with these losses, ten steps apart."""
    return [said for n, loss in enumerate(losses) for said in watch.report(10 * n, WELL | {"loss": loss} | measured)]


def test_a_run_that_goes_well_is_told_nothing() -> None:
    watch = health()
    assert reported(health(), [9.5, 9.0, 8.0, 6.5, 5.5, 5.0, CHANCE, CHANCE, 4.1]) == []  # tuned from overconfidence
    assert reported(watch, [CHANCE, CHANCE, 3.5, 3.0, 2.5, 2.0, 1.8, 1.7]) == []
    assert [said for n in range(9) for said in watch.evaluation(n, SCORES)] == []


@pytest.mark.parametrize(
    ("losses", "measured", "said"),
    [
        ([CHANCE] * 9, {}, "stays at chance"),
        ([CHANCE, 3.9, 3.5, 3.6, 4.0, *[5.4] * 5], {}, "too high"),
        ([3.0] * 9, {"logit_scale": 100.0}, "temperature is at its limit"),
        ([3.0] * 9, {"logit_scale": 1.0}, "lower limit"),
        ([3.0] * 9, {"data_wait": 0.6}, "waiting for images"),
        ([3.0] * 9, {"repeated_captions": 0.9}, "share their caption"),
    ],
)
def test_each_trouble_is_told_once(losses: list[float], measured: dict[str, float], said: str) -> None:
    told = reported(health(), losses, **measured)
    assert len(told) == 1
    assert said in told[0]


def test_with_the_sigmoid_loss_chance_is_that_of_one_answer_for_all() -> None:
    (stuck,) = reported(health(loss="sigmoid"), [SIGMOID_CHANCE] * 9, chance=SIGMOID_CHANCE)
    assert "stays at chance (5.15, that of one same answer for every pair)" in stuck
    (risen,) = reported(health(loss="sigmoid"), [SIGMOID_CHANCE, 4.5, 4.0, *[7.0] * 6], chance=SIGMOID_CHANCE)
    assert "has risen to 7.00, worse than chance (5.15, that" in risen
    assert reported(health(loss="sigmoid"), [SIGMOID_CHANCE, 5.0, *[CHANCE] * 7], chance=SIGMOID_CHANCE) == []


def test_the_limit_of_the_temperature_is_that_of_the_weights() -> None:
    assert reported(health(loss="sigmoid"), [3.0] * 9, logit_scale=117.0) == []
    (said,) = reported(health(loss="sigmoid"), [3.0] * 9, logit_scale=1000.0)
    assert "at its limit (logit scale 1000)" in said


def test_captions_that_are_classes_may_repeat() -> None:
    assert reported(health(classes=True), [3.0] * 9, repeated_captions=1.0) == []


def test_falling_recall_is_overfitting_though_the_loss_says_nothing() -> None:
    watch = health()
    told = [
        said
        for step, recall in enumerate([0.1, 0.3, 0.29, 0.26, 0.25, 0.24])
        for said in watch.evaluation(step, SCORES | {"mean_recall": recall})
    ]
    assert len(told) == 1
    assert "best at step 1" in told[0]


@pytest.mark.parametrize(("name", "tower"), [("image_mean_cosine", "images"), ("text_mean_cosine", "captions")])
def test_a_tower_that_says_the_same_of_everything_has_collapsed(name: str, tower: str) -> None:
    assert health().evaluation(10, SCORES | {name: 0.999}) == []  # of a new network that means nothing
    (said,) = health().evaluation(60, SCORES | {name: 0.999})
    assert f"all {tower} look alike" in said


def test_mean_cosine_is_that_of_all_pairs_of_different_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    assert mean_cosine(rows) == pytest.approx(cosines[~np.eye(7, dtype=bool)].mean(), abs=1e-6)
    assert mean_cosine(rows[:1]) == 0.0
