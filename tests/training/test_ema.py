"""The EMA of the weights, with and without LoRA."""

import pytest
import torch

from clip_core.config import TuneConfig
from clip_core.training.ema import EvalWeights, decay_at
from clip_core.training.trainable import choose_trainable, merged_weights
from tests.training.tiny import adamw, tiny, train


def test_the_ema_is_the_formula() -> None:
    model = tiny()
    weights = EvalWeights(model, 0.9)
    optimiser = adamw(model)
    name = "image.blocks.0.mlp.0.weight"
    expected = model.state_dict()[name].clone().double()
    for step in range(1, 30):
        train(model, 1, optimiser)
        weights.after_step(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.state_dict()[name].double()
    torch.testing.assert_close(weights.ready().state_dict()[name].double(), expected, rtol=0, atol=1e-6)
    assert not torch.equal(weights.ready().state_dict()[name], model.state_dict()[name])


def test_the_decay_of_the_ema_starts_low_and_reaches_its_value() -> None:
    assert decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert decay_at(100_000, 0.999) == 0.999


def test_the_ema_of_lora_is_the_ema_of_the_merged_weights() -> None:
    model = tiny()
    choose_trainable(model, TuneConfig(init="x", lora=2))
    weights = EvalWeights(model, 0.5)
    name = "text.blocks.1.attention.qkv.weight"
    expected = merged_weights(model)[name].clone()
    optimiser = adamw(model)
    for step in (1, 2, 3):
        train(model, 1, optimiser)
        weights.after_step(step)
        expected = torch.lerp(expected, merged_weights(model)[name], 1 - decay_at(step, 0.5))
    torch.testing.assert_close(weights.ready().state_dict()[name], expected, rtol=0, atol=1e-6)


def test_equal_weights_have_equal_emas_bit_for_bit_on_every_rank() -> None:
    ranks = [(model, EvalWeights(model, 0.99), adamw(model)) for model in (tiny(), tiny())]
    for step in range(1, 5):
        for model, weights, optimiser in ranks:
            train(model, 1, optimiser)
            weights.after_step(step)
    one, other = (weights.ready().state_dict() for _, weights, _ in ranks)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("decay", "lora"), [(None, None), (0.9, None), (None, 2), (0.9, 2)])
def test_evaluated_and_raw_weights_together_restore_both_networks(decay: float | None, lora: int | None) -> None:
    model = tiny()
    choose_trainable(model, TuneConfig(init="x", lora=lora))
    weights, optimiser = EvalWeights(model, decay), adamw(model)
    for step in (1, 2):
        train(model, 1, optimiser)
        weights.after_step(step)
    saved = {name: value.clone() for name, value in weights.ready().state_dict().items()}
    raw = {name: value.clone() for name, value in weights.raw().items()}
    again = tiny(seed=1)
    choose_trainable(again, TuneConfig(init="x", lora=lora))
    restored = EvalWeights(again, decay)
    restored.model.load_state_dict(saved, strict=True)
    assert restored.restore(raw | {"image.positions/exp_avg": torch.zeros(1)}).keys() == {"image.positions/exp_avg"}
    for one, other in ((model, again), (weights.ready(), restored.ready())):
        mine, theirs = one.state_dict(), other.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
