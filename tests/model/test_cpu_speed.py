"""CPU speed: attention by products is attention, and memory is kept and returned when asked."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from clip_core.model.cpu_speed import attend_by_products, prefers_products, use_all_cores

GLIBC = platform.libc_ver()[0] == "glibc"

MEASURED = """
import resource, psutil, torch
from clip_core.model.cpu_speed import give_back_memory, keep_freed_memory

def step():
    return torch.ones(1 << 24)  # 64 MB

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return psutil.Process().memory_info().rss

{first}
for _ in range(20):
    step()
before = faults()
for _ in range(10):
    step()
taken, kept = faults() - before, resident()
give_back_memory()
print(taken, kept - resident())
"""


def measure(first: str) -> tuple[int, int]:
    """Page faults of ten rounds in which 64 MB come and go, and the bytes given back after them."""
    command = [sys.executable, "-c", MEASURED.format(first=first)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, given_back = done.stdout.split()
    return int(taken), int(given_back)


def test_memory_that_a_step_frees_is_there_for_the_next_one_until_it_is_given_back() -> None:
    (fresh, _), (kept, given_back) = measure(""), measure("keep_freed_memory()")
    assert (kept < fresh / 10) is GLIBC  # elsewhere nothing changes
    assert (given_back > 60e6) is GLIBC


@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_products_and_its_gradient_are_those_of_the_fused_kernel(causal: bool) -> None:
    random = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 2, 4, 17, 16, generator=random, dtype=torch.float64, requires_grad=True)
    fused = F.scaled_dot_product_attention(*qkv.unbind(), is_causal=causal)
    products = attend_by_products(qkv, causal=causal)
    torch.testing.assert_close(products, fused)
    gradient = torch.randn(fused.shape, generator=random, dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(products, qkv, gradient), torch.autograd.grad(fused, qkv, gradient))


def test_products_are_for_bf16_on_a_cpu_and_up_to_1024_tokens() -> None:
    assert prefers_products(torch.empty(3, 1, 1, 1024, 8, dtype=torch.bfloat16))
    assert not prefers_products(torch.empty(3, 1, 1, 1025, 8, dtype=torch.bfloat16))
    assert not prefers_products(torch.empty(3, 1, 1, 8, 8))
    assert not prefers_products(torch.empty(3, 1, 1, 8, 8, dtype=torch.bfloat16, device="meta"))


def test_torch_uses_no_more_threads_than_there_are_cores() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1000)
        use_all_cores()
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)
