"""Attention by matrix products, as a CPU computes it in bf16."""

import pytest
import torch

from clip_core.model.transformer import attend


@pytest.mark.parametrize("causal", [True, False])
def test_attention_by_products_is_the_fused_one_but_for_rounding_and_so_is_its_gradient(causal: bool) -> None:
    random = torch.Generator().manual_seed(0)
    start, seen = torch.randn(3, 2, 4, 17, 16, generator=random), torch.randn(2, 4, 17, 16, generator=random)
    exact, rounded = start.clone().requires_grad_(), start.bfloat16().requires_grad_()
    values = [attend(qkv, causal=causal) for qkv in (exact, rounded)]
    torch.testing.assert_close(values[1].float(), values[0], atol=0.03, rtol=0)
    for value in values:
        value.backward(seen.to(value.dtype))
    assert exact.grad is not None
    assert rounded.grad is not None
    for of_exact, of_rounded in zip(exact.grad, rounded.grad.float(), strict=True):  # of q, of k, of v
        assert (of_rounded - of_exact).norm() < 0.02 * of_exact.norm()
