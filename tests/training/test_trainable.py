"""Locked towers and LoRA: which parameters are trainable, and what merging gives."""

from typing import Any

import pytest
import torch
from torch import nn

from clip_core.config import LossName, TuneConfig
from clip_core.model.clip import CLIP
from clip_core.network import AttentionPooling, ImageTower, Pooling
from clip_core.training.trainable import choose_trainable, is_adapter, merged_weights
from tests.training.tiny import adamw, inputs, tiny, tiny_config, train


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_adapters_change_nothing_until_they_are_trained() -> None:
    model, before = tiny(), copy_of(tiny())
    start = model(*inputs())[:2]
    choose_trainable(model, TuneConfig(init="x", lora=4))
    assert all(torch.equal(a, b) for a, b in zip(model(*inputs())[:2], start, strict=True))
    merged = merged_weights(model)
    assert merged.keys() == before.keys()
    assert all(torch.equal(merged[name], before[name]) for name in before)


def test_merged_adapters_give_the_same_embeddings() -> None:
    model = tiny()
    choose_trainable(model, TuneConfig(init="x", lora=4, lora_alpha=32.0))
    train(model)
    plain = tiny(seed=1)
    plain.load_state_dict(merged_weights(model), strict=True)
    for one, other in zip(model(*inputs(9))[:2], plain(*inputs(9))[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert not torch.allclose(plain(*inputs(9))[0], tiny()(*inputs(9))[0], atol=1e-3)


def test_with_lora_the_adapters_and_the_temperature_alone_are_trainable() -> None:
    model, before = tiny(), copy_of(tiny())
    choose_trainable(model, TuneConfig(init="x", lora=2))
    optimiser = train(model)
    moved = {
        name for name, value in model.named_parameters() if name in before and not torch.equal(value, before[name])
    }
    assert moved == {"log_logit_scale"}
    held = {name.rpartition("/")[0] for name in optimiser.tensors()}
    assert held == {name for name, _ in model.named_parameters() if is_adapter(name)} | moved


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("tune", [{}, {"lora": 2}, {"lock": "image"}])
def test_the_logit_bias_is_trainable_with_the_sigmoid_loss_alone(loss: LossName, tune: dict[str, Any]) -> None:
    model = tiny(logit_bias=True)
    choose_trainable(model, TuneConfig(init="x", **tune), loss)
    assert model.get_parameter("logit_bias").requires_grad is (loss == "sigmoid")
    decays = {id(p): group["weight_decay"] for group in adamw(model).groups for p in group["params"]}
    assert decays.get(id(model.logit_bias)) == (0.0 if loss == "sigmoid" else None)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_locked_tower_has_adapters_in_its_unlocked_blocks_alone(tower: str) -> None:
    model = tiny()
    choose_trainable(model, TuneConfig(init="x", lora=2, lock=tower, unlock_last=1))
    inside = {name.rpartition(".attention")[0] for name, _ in model.named_parameters() if "qkv.lora_up" in name}
    other = "text" if tower == "image" else "image"
    assert inside == {f"{other}.blocks.0", f"{other}.blocks.1", f"{tower}.blocks.1"}


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_locked_tower_does_not_change_bit_for_bit_and_the_optimiser_keeps_nothing_for_it(tower: str) -> None:
    model, before = tiny(), copy_of(tiny())
    choose_trainable(model, TuneConfig(init="x", lock=tower))
    optimiser = train(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) is name.startswith(tower), name
    assert not [name for name in optimiser.tensors() if name.startswith(tower)]


@pytest.mark.parametrize(("tower", "norm"), [("image", "norm_post"), ("text", "norm_final")])
def test_unlock_last_unfreezes_the_last_blocks_the_norm_and_the_projection(tower: str, norm: str) -> None:
    model = tiny(layers=3)
    choose_trainable(model, TuneConfig(init="x", lock=tower, unlock_last=2))
    opened = {n for n, p in model.named_parameters() if p.requires_grad and n.startswith(tower)}
    parts = (f"{tower}.blocks.1.", f"{tower}.blocks.2.", f"{tower}.{norm}.", f"{tower}.projection.")
    assert opened == {n for n, _ in model.named_parameters() if n.startswith(parts)}


# ---------------------------------------------------------------- attention pooling


def pooled(seed: int = 0) -> CLIP:
    """A tiny model whose image tower ends in attention pooling, without a projection."""
    torch.manual_seed(seed)
    plain = tiny_config(logit_bias=True)
    head = AttentionPooling(heads=4, mlp_width=40)
    image = ImageTower(
        image_size=32, patch_size=8, width=32, heads=2, layers=2, pooling=Pooling.ATTENTION, attention_pooling=head,
        norm_after_pooling=False, projection=False,
    )  # fmt: skip
    return CLIP(plain.model_copy(update={"image": image, "embed_dim": 32}))


def test_adapters_of_attention_pooling_merge_into_a_plain_model() -> None:
    model = pooled()
    start = model(*inputs())[:2]
    choose_trainable(model, TuneConfig(init="x", lora=4))
    assert all(torch.equal(a, b) for a, b in zip(model(*inputs())[:2], start, strict=True))
    train(model)
    adapted = {name for name, _ in model.named_parameters() if name.endswith("lora_up") and "attention_pool" in name}
    layers = ("query", "key_value", "out", "mlp.0", "mlp.2")
    assert adapted == {f"image.attention_pool.{layer}.lora_up" for layer in layers}
    plain = pooled(seed=1)
    plain.load_state_dict(merged_weights(model), strict=True)
    for one, other in zip(model(*inputs(9))[:2], plain(*inputs(9))[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    name = "image.attention_pool.query.weight"
    assert not torch.equal(plain.get_parameter(name), pooled().get_parameter(name))


def test_attention_pooling_is_frozen_with_its_tower_and_unfrozen_with_its_last_block() -> None:
    for unlocked in (0, 1):
        model = pooled()
        choose_trainable(model, TuneConfig(init="x", lock="image", unlock_last=unlocked))
        trainable = {p.requires_grad for n, p in model.named_parameters() if n.startswith("image.attention_pool.")}
        assert trainable == {bool(unlocked)}


def test_layer_decay_gives_attention_pooling_the_whole_learning_rate() -> None:
    model = pooled()
    shares = {id(p): group["lr_share"] for group in adamw(model, 0.5).groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in adamw(model).groups for p in group["params"]}
    parts = {n: p for n, p in model.named_parameters() if n.startswith("image.attention_pool.")}
    assert {shares[id(p)] for p in parts.values()} == {1.0}
    assert {n for n, p in parts.items() if decays[id(p)]} == {n for n, p in parts.items() if p.ndim == 2}
