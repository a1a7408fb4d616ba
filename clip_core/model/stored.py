"""A tensor that is still in its file."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clip_core.errors import CheckpointError


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: where its numbers are, and how they are laid out (`stride` in elements)."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor, contiguous, in memory of its own.

        Raises:
            CheckpointError: if the file has become shorter.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        elements = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        numbers = torch.empty(elements, dtype=self.dtype)
        self._fill(numbers)
        return numbers.as_strided(self.shape, self.stride).contiguous()

    def read_into(self, place: Tensor) -> None:
        """The tensor, into memory that is there: contiguous, of its shape, in any type.

        Raises:
            CheckpointError: if the file has become shorter.
        """
        if place.dtype == self.dtype and self.stride == row_major(self.shape) and place.is_contiguous():
            self._fill(place.flatten())
        else:
            place.copy_(self.read())

    def _fill(self, numbers: Tensor) -> None:
        """Read as many numbers as fit into a flat tensor."""
        memory = numbers.view(torch.uint8).numpy().data
        with self.path.open("rb") as handle:
            handle.seek(self.offset)
            if handle.readinto(memory) != len(memory):
                raise cut_short(self.path)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a tensor whose last axis is contiguous."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def cut_short(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is cut short: it ends before its last tensor; copy or download it again.")
