"""bf16 weights below fp32 master weights."""

import torch
from torch.nn import functional as F

from clip_core.training.mixed_precision import MixedPrecision
from tests.training.tiny import inputs, tiny


def gradients(precision: str) -> dict[str, torch.Tensor]:
    model = tiny()
    mixed = MixedPrecision(model, precision)
    pixel_values, input_ids = inputs(pairs=8)
    images, texts, logit_scale, _ = mixed.network(pixel_values.to(mixed.dtype), input_ids)
    assert images.dtype is texts.dtype is torch.float32
    F.cross_entropy(logit_scale * images @ texts.T, torch.arange(8)).backward()
    mixed.gradients_to_master()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_in_bf16_are_those_in_fp32_but_for_rounding() -> None:
    exact, rounded = gradients("fp32"), gradients("bf16")
    assert exact.keys() == rounded.keys()
    for name, value in exact.items():
        assert rounded[name].dtype is torch.float32
        assert F.cosine_similarity(value.flatten(), rounded[name].flatten(), dim=0) > 0.99, name


def test_the_network_follows_the_trainable_weights_and_keeps_its_parameters() -> None:
    model = tiny()
    model.image.requires_grad_(False)
    mixed = MixedPrecision(model, "bf16")
    before = list(mixed.network.parameters())
    with torch.no_grad():
        model.text.projection.weight.add_(1.0)
        model.image.projection.weight.add_(1.0)
    mixed.weights_to_network()
    assert torch.equal(mixed.network.text.projection.weight, model.text.projection.weight.bfloat16())
    assert mixed.network.log_logit_scale.dtype is torch.float32
    assert not mixed.network.image.projection.weight.requires_grad
    assert not torch.equal(mixed.network.image.projection.weight, model.image.projection.weight.bfloat16())
    mixed.reload()
    assert torch.equal(mixed.network.image.projection.weight, model.image.projection.weight.bfloat16())
    assert all(one is other for one, other in zip(before, mixed.network.parameters(), strict=True))  # as DDP needs


def test_the_network_shares_no_memory_with_the_fp32_weights() -> None:
    model = tiny(logit_bias=True)
    mixed = MixedPrecision(model, "bf16")
    for name, parameter in model.named_parameters():
        working = mixed.network.get_parameter(name)
        assert working.dtype is (torch.bfloat16 if parameter.ndim else torch.float32), name
        assert working.data_ptr() != parameter.data_ptr(), name


def test_in_fp32_the_network_is_the_model() -> None:
    model = tiny()
    assert MixedPrecision(model, "fp32").network is model
