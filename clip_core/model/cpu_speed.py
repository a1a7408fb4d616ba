"""What makes a model fast on a CPU: attention by matrix products in bf16, memory kept between batches, all cores.

Shapes: B batch, T tokens, H heads, E = W / H. What each of these is worth is in docs/log.md.
"""

import ctypes
import os
from typing import Any

import torch
from torch import Tensor

_MOST_TOKENS = 1024  # beyond, the scores of a whole batch would take too much memory

_C_LIBRARY = ctypes.CDLL(None)
# glibc's malloc.h: free bytes at the end of the heap above which it shrinks, and the size from which an allocation
# bypasses the heap.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ALL_KEPT = 2**31 - 1  # bytes
_LARGE, _LARGE_ONCE = 2**30, 2**25  # bytes; what older versions allow


def prefers_products(qkv: Tensor) -> bool:
    """Whether `attend_by_products` is faster than the fused kernel: in bf16 on a CPU, up to 1,024 tokens."""
    return qkv.dtype is torch.bfloat16 and qkv.device.type == "cpu" and qkv.shape[-2] <= _MOST_TOKENS


def attend_by_products(qkv: Tensor, *, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(E)) v by matrix products.  (3, B, H, T, E) -> (B, H, T, E)

    The backward pass of the fused kernel (scaled_dot_product_attention) is several times slower in bf16 on a CPU.
    """
    values: Tensor = _Products.apply(qkv, causal)
    return values


class _Products(torch.autograd.Function):
    """Attention over all heads at once; q, k and v are one tensor, and so are their gradients."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, causal: bool) -> Tensor:
        """(3, B, H, T, E) -> (B, H, T, E)"""
        qkv = qkv.contiguous()
        q, k, v = qkv.flatten(1, 2).unbind()  # each (B H, T, E)
        scores = torch.bmm(q, k.transpose(1, 2)).mul_(q.shape[-1] ** -0.5)  # (B H, T, T)
        if causal:
            scores.add_(torch.full_like(scores[0], float("-inf")).triu_(1))
        weights = scores.softmax(dim=-1)
        ctx.save_for_backward(qkv, weights)
        return torch.bmm(weights, v).view(qkv.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Gradient of the values, (B, H, T, E) -> of q, k and v, (3, B, H, T, E)"""
        qkv, weights = ctx.saved_tensors
        q, k, v = qkv.flatten(1, 2).unbind()
        gradient = gradient.reshape(q.shape)
        gradients = torch.empty_like(qkv)
        of_q, of_k, of_v = gradients.flatten(1, 2).unbind()
        torch.bmm(weights.transpose(1, 2), gradient, out=of_v)
        of_weights = torch.bmm(gradient, v.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(q.shape[-1] ** -0.5)
        torch.bmm(of_scores, k, out=of_q)
        torch.bmm(of_scores.transpose(1, 2), q, out=of_k)
        return gradients, None


def use_all_cores() -> None:
    """Let torch use the cores that this process may run on; containers often report more."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(torch.get_num_threads(), available)))


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a batch frees for the next batch; without glibc, nothing changes.

    Otherwise the large tensors of every batch are new pages that the system clears first: 7 % of a training step's time
    on a CPU, and two thirds of the time in which a convolutional encoder embeds images.
    """
    if hasattr(_C_LIBRARY, "mallopt"):
        _ = _C_LIBRARY.mallopt(_M_MMAP_THRESHOLD, _LARGE) or _C_LIBRARY.mallopt(_M_MMAP_THRESHOLD, _LARGE_ONCE)
        _C_LIBRARY.mallopt(_M_TRIM_THRESHOLD, _ALL_KEPT)


def give_back_memory() -> None:
    """Return free memory to the system; called now and then, so that the heap does not fragment."""
    if hasattr(_C_LIBRARY, "malloc_trim"):
        _C_LIBRARY.malloc_trim(0)
