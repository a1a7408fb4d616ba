"""The processes that train together: which one this is, which part of a batch is its own, what they exchange.

Shapes: B pairs in the batch of all processes, b = B / size pairs of one process, D embedding.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True)
class Rank:
    """One of the processes of a run, by torch.distributed's words; alone it is rank 0 of 1.

    Raises:
        ValueError: if `rank` is not one of 0 to `size` - 1.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not one of 0 to {self.size - 1}")

    @property
    def writes(self) -> bool:
        """Rank 0 alone writes to the run directory, the log and the terminal."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """The rows of this rank among `count` rows of all, which `size` divides."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)


def gather(own: Tensor, rank: Rank) -> Tensor:
    """The rows of every rank, in the order of ranks; gradients flow back to the rank that they came from.

    (b, D) -> (B, D)
    """
    if rank.size == 1:
        return own
    everyone: Tensor = _Gather.apply(own, rank)
    return everyone


class _Gather(torch.autograd.Function):
    """All-gather with a gradient: that of a row is summed over the losses of all ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rank: Rank) -> Tensor:
        ctx.rank = rank
        parts = [torch.empty_like(own) for _ in range(rank.size)]
        torch.distributed.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient[ctx.rank.part(len(gradient))], None


def local(tensor: Tensor) -> Tensor:
    """The rows of this rank of a tensor that is divided among the ranks (sharding.py), without a copy; else itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """The rows of all ranks, which call this together, of a tensor that is divided among them; else itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
