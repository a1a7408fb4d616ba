"""Adapters, the average, what is locked and how fast each layer moves: on a tiny network, without a run."""

from typing import Any

import pytest
import torch
from torch import nn

from clip_core.config import LossName, TuneConfig
from clip_core.model.clip import CLIP
from clip_core.network import ClipConfig, ImageTower, Preprocessing, TextTower
from clip_core.training.blend import blend_weights
from clip_core.training.trainable import choose_trainable
from clip_core.training.trainable import is_adapter, merged_weights
from clip_core.training.optimiser import Optimiser
from clip_core.training.ema import EvalWeights, decay_at

CPU = torch.device("cpu")


def tiny(seed: int = 0, *, logit_bias: bool = False, layers: int = 2) -> CLIP:
    torch.manual_seed(seed)
    return CLIP(
        ClipConfig(
            embed_dim=16,
            image=ImageTower(image_size=32, patch_size=16, width=32, heads=2, layers=layers),
            text=TextTower(vocab_size=20, end_token=2, context_length=8, width=32, heads=2, layers=layers),
            preprocessing=Preprocessing(image_size=32),
            logit_bias=logit_bias,
        )
    )


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, 20, (6, 8), generator=generator)
    input_ids[:, -1] = 2
    return torch.randn(6, 3, 32, 32, generator=generator), input_ids


def optimiser_of(model: CLIP, layer_decay: float = 1.0, lr: float = 1e-2) -> Optimiser:
    return Optimiser(model, lr=lr, weight_decay=0.1, beta2=0.98, device=CPU, layer_decay=layer_decay)


def move(model: CLIP, steps: int = 3, optimiser: Optimiser | None = None) -> Optimiser:
    """A few steps on fixed random pairs."""
    optimiser = optimiser or optimiser_of(model)
    for step in range(steps):
        images, texts, *_ = model(*batch(step))
        logits = model.logit_scale() * images @ texts.T
        optimiser.zero_grad()
        nn.functional.cross_entropy(logits, torch.arange(6)).backward()
        optimiser.step()
    return optimiser


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_adapters_change_nothing_until_they_are_trained() -> None:
    model, before = tiny(), copy_of(tiny())
    start = model(*batch())[:2]
    choose_trainable(model, TuneConfig(init="x", lora=4))
    assert all(torch.equal(a, b) for a, b in zip(model(*batch())[:2], start, strict=True))
    merged = merged_weights(model)
    assert merged.keys() == before.keys()
    assert all(torch.equal(merged[name], before[name]) for name in before)


def test_merged_adapters_say_what_they_say_unmerged() -> None:
    model = tiny()
    choose_trainable(model, TuneConfig(init="x", lora=4, lora_alpha=32.0))
    move(model)
    plain = tiny(seed=1)
    plain.load_state_dict(merged_weights(model), strict=True)
    for one, other in zip(model(*batch(9))[:2], plain(*batch(9))[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert not torch.allclose(plain(*batch(9))[0], tiny()(*batch(9))[0], atol=1e-3)


def test_with_adapters_nothing_else_moves_but_the_temperature() -> None:
    model, before = tiny(), copy_of(tiny())
    choose_trainable(model, TuneConfig(init="x", lora=2))
    optimiser = move(model)
    moved = {
        name for name, value in model.named_parameters() if name in before and not torch.equal(value, before[name])
    }
    assert moved == {"log_logit_scale"}
    held = {name.rpartition("/")[0] for name in optimiser.tensors()}
    assert held == {name for name, _ in model.named_parameters() if is_adapter(name)} | moved


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("tune", [{}, {"lora": 2}, {"lock": "image"}])
def test_the_bias_moves_with_the_sigmoid_loss_alone(loss: LossName, tune: dict[str, Any]) -> None:
    model = tiny(logit_bias=True)
    choose_trainable(model, TuneConfig(init="x", **tune), loss)
    assert model.get_parameter("logit_bias").requires_grad is (loss == "sigmoid")
    decays = {id(p): group["weight_decay"] for group in optimiser_of(model).groups for p in group["params"]}
    assert decays.get(id(model.logit_bias)) == (0.0 if loss == "sigmoid" else None)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_adapters_stay_out_of_a_locked_tower_but_for_its_open_end(tower: str) -> None:
    model = tiny()
    choose_trainable(model, TuneConfig(init="x", lora=2, lock=tower, unlock_last=1))
    inside = {name.rpartition(".attention")[0] for name, _ in model.named_parameters() if "qkv.lora_up" in name}
    other = "text" if tower == "image" else "image"
    assert inside == {f"{other}.blocks.0", f"{other}.blocks.1", f"{tower}.blocks.1"}


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_locked_tower_does_not_change_bit_for_bit_and_the_optimiser_keeps_nothing_for_it(tower: str) -> None:
    model, before = tiny(), copy_of(tiny())
    choose_trainable(model, TuneConfig(init="x", lock=tower))
    optimiser = move(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) is name.startswith(tower), name
    assert not [name for name in optimiser.tensors() if name.startswith(tower)]


@pytest.mark.parametrize(("tower", "norm"), [("image", "norm_post"), ("text", "norm_final")])
def test_unlock_last_opens_the_last_blocks_the_norm_and_the_projection(tower: str, norm: str) -> None:
    model = tiny(layers=3)
    choose_trainable(model, TuneConfig(init="x", lock=tower, unlock_last=2))
    opened = {n for n, p in model.named_parameters() if p.requires_grad and n.startswith(tower)}
    parts = (f"{tower}.blocks.1.", f"{tower}.blocks.2.", f"{tower}.{norm}.", f"{tower}.projection.")
    assert opened == {n for n, _ in model.named_parameters() if n.startswith(parts)}


def test_a_weight_without_gradient_breaks_neither_the_step_nor_the_resuming() -> None:
    model = tiny(logit_bias=True)
    optimiser = move(model)
    tensors = {name: value.clone() for name, value in optimiser.tensors().items()}
    assert not [name for name in tensors if name.startswith("logit_bias")]
    again = tiny(logit_bias=True)
    again.load_state_dict(model.state_dict())
    other = optimiser_of(again)
    other.restore(tensors)
    move(model, 2, optimiser)
    move(again, 2, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_average_is_the_formula() -> None:
    model = tiny()
    shown = EvalWeights(model, 0.9)
    optimiser = optimiser_of(model)
    name = "image.blocks.0.mlp.0.weight"
    expected = model.state_dict()[name].clone().double()
    for step in range(1, 30):
        move(model, 1, optimiser)
        shown.after_step(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.state_dict()[name].double()
    torch.testing.assert_close(shown.ready().state_dict()[name].double(), expected, rtol=0, atol=1e-6)
    assert not torch.equal(shown.ready().state_dict()[name], model.state_dict()[name])


def test_the_average_begins_short_and_reaches_its_decay() -> None:
    assert decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert decay_at(100_000, 0.999) == 0.999


def test_the_average_of_adapters_is_the_average_of_the_merged_weights() -> None:
    model = tiny()
    choose_trainable(model, TuneConfig(init="x", lora=2))
    shown = EvalWeights(model, 0.5)
    name = "text.blocks.1.attention.qkv.weight"
    expected = merged_weights(model)[name].clone()
    optimiser = optimiser_of(model)
    for step in (1, 2, 3):
        move(model, 1, optimiser)
        shown.after_step(step)
        expected = torch.lerp(expected, merged_weights(model)[name], 1 - decay_at(step, 0.5))
    torch.testing.assert_close(shown.ready().state_dict()[name], expected, rtol=0, atol=1e-6)


def test_blends_of_none_and_of_all_are_the_end_points() -> None:
    start, end = tiny(0).state_dict(), tiny(1).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in blend_weights(start, end, 0.0).items())
    assert all(torch.equal(value, end[name]) for name, value in blend_weights(start, end, 1.0).items())
    halfway = blend_weights(start, end, 0.5)["image.positions"]
    torch.testing.assert_close(halfway, (start["image.positions"] + end["image.positions"]) / 2)


def test_each_layer_moves_by_a_share_of_the_one_above() -> None:
    model = tiny(layers=2)
    optimiser = optimiser_of(model, layer_decay=0.5, lr=1.0)
    share = {id(p): group["lr_share"] for group in optimiser.groups for p in group["params"]}
    shares = {name: share[id(p)] for name, p in model.named_parameters()}
    assert shares["log_logit_scale"] == shares["image.projection.weight"] == shares["text.norm_final.bias"] == 1
    assert shares["image.blocks.1.mlp.0.weight"] == shares["text.blocks.1.norm_1.bias"] == 0.5
    assert shares["image.blocks.0.mlp.0.weight"] == 0.25
    assert shares["image.patches.weight"] == shares["text.tokens.weight"] == shares["text.positions"] == 0.125
