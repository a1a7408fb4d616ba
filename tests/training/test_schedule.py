"""The learning rate of each step, and another number of steps; whole runs with --minutes are in test_minutes.py."""

import pytest

from clip_core.training.schedule import learning_rate, with_steps
from tests.training.test_recipe import config, recipe


def test_the_learning_rate_warms_up_linearly_and_decays_by_a_cosine() -> None:
    rates = [learning_rate(step, peak=2.0, steps=11, warmup_steps=4, floor=0.1) for step in range(11)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[7] == pytest.approx(1.1)  # halfway between the peak and the floor
    assert rates[10] == pytest.approx(0.2)
    assert learning_rate(10, peak=2.0, steps=11, warmup_steps=0, floor=1.0) == 2.0


def test_another_number_of_steps_keeps_the_proportions_of_the_schedule() -> None:
    given = config()
    longer = with_steps(recipe(given, 2_771), given, 5_000)
    assert (longer.steps, longer.warmup_steps) == (5_000, 500)
    assert longer.eval_every % longer.steps_per_epoch == 0
    assert 20 <= longer.steps / longer.eval_every <= 31
