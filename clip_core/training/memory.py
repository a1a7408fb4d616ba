"""The memory of a training run, estimated before its first step, and the largest batch that fits.

What the weights need (gradients, optimiser state) is counted. What a pair needs is measured: the tensors that a forward
pass of one and of two samples saves for its backward pass (`torch.autograd.graph.saved_tensors_hooks`), on any device.

Shapes: B pairs in a batch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from clip_core.training.batches import Batch
from clip_core.training.train_step import TrainStep

_LOGITS = 24  # bytes of each of the B x B pairs: logits, their softmax both ways, matches
_BACKWARD = 1.15  # gradients of activations, which exist for a few layers at a time, on top of what is saved
_LARGEST = 2**20
_CGROUP = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training takes on its device.

    `weights`: of the weights, their copies in bf16 and in the EMA, which exist already. `state`: of gradients and
    optimiser state, which come with the first step. `per_pair`: of the activations of one pair. `available`: free
    memory before the first step.
    """

    weights: int
    state: int
    per_pair: float
    available: int
    batch_size: int

    def of_step(self, batch_size: int) -> float:
        """What the first step adds, at a batch size."""
        return self.state + self.per_pair * batch_size + _LOGITS * batch_size**2

    @property
    def largest_batch(self) -> int:
        """The largest batch whose step fits into what is available; 0 if none does."""
        low, high = 0, _LARGEST
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.of_step(middle) <= self.available else (low, middle - 1)
        return low

    @property
    def fits(self) -> bool:
        return self.of_step(self.batch_size) <= self.available

    def line(self) -> str:
        """The estimate in one line of the log."""
        return (
            f"memory: {_text(self.weights)} of weights, {_text(self.state)} of gradients and optimiser state, "
            f"{_text(self.per_pair)} per pair; a batch of {self.batch_size} adds about "
            f"{_text(self.of_step(self.batch_size))} of {_text(self.available)} available, "
            f"and the largest that fits is about {_rounded(self.largest_batch):,}"
        )

    def warning(self) -> str | None:
        """What to do where the batch does not fit; None where it does."""
        if self.fits:
            return None
        smaller = _rounded(self.largest_batch)
        remedy = f"use --batch-size {smaller}" if smaller >= 2 else "use a smaller model, or a device with more memory"
        return (
            f"a batch of {self.batch_size} needs about {_text(self.of_step(self.batch_size))} of memory, and "
            f"{_text(self.available)} are available: {remedy}"
        )


def estimate_memory(step: TrainStep, batch: Batch) -> MemoryEstimate:
    """The memory of a run, from its first batch; random numbers and weights stay as they are.

    Args:
        step: before its first call.
        batch: on the device of `step`.
    """
    trained = [parameter for parameter in step.model.parameters() if parameter.requires_grad]
    gradients = sum(map(_bytes, trained)) + sum(
        _bytes(parameter)
        for parameter in step.network.parameters()
        if parameter.requires_grad and step.network is not step.model
    )
    networks = (step.model, step.network, step.eval_weights.model)
    held = {id(each): each for network in networks for each in _tensors(network)}
    training = step.network.training
    step.network.eval()  # so that no running mean changes
    per_pair = _of_images(step, batch) + _of_captions(step, batch) / len(batch)
    step.network.train(training)
    return MemoryEstimate(
        weights=sum(map(_bytes, held.values())),
        state=gradients + step.optimiser.state_bytes(),
        per_pair=per_pair * _BACKWARD,
        available=available_memory(step.device),
        batch_size=len(batch),
    )


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated: of a GPU, of the machine, or of the container's limit."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    free = int(psutil.virtual_memory().available)
    for limit, usage in _CGROUP:
        try:
            free = min(free, int(limit.read_text()) - int(usage.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return max(free, 0)


def saved_bytes(network: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes of the distinct tensors that `forward` saves for its backward pass, weights excluded."""
    weights = {each.untyped_storage().data_ptr() for each in _tensors(network)}
    found: dict[int, int] = {}

    def saved(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor  # which keeps the storage, so that no other gets its address

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        result = forward()
    del result
    return sum(found.values())


def _of_images(step: TrainStep, batch: Batch) -> float:
    """Bytes of one image: pixels and activations."""

    def images(count: int) -> int:
        part = batch.first(count)
        pixels = step.images(part, 0)
        kept = step.kept_patches(part, 0)
        return saved_bytes(step.network, lambda: step.network(pixels, None, kept)) + _bytes(pixels)

    return _slope(images, len(batch))


def _of_captions(step: TrainStep, batch: Batch) -> float:
    """Bytes of all captions of the batch, each group by its own length."""
    total = 0.0
    for group in batch.input_ids:

        def captions(count: int, group: Tensor = group) -> int:
            return saved_bytes(step.network, lambda: step.network(None, group[:count]))

        total += _slope(captions, len(group)) * len(group)
    return total


def _slope(bytes_of: Callable[[int], int], there: int) -> float:
    """Bytes that a second sample adds; those of one where there is no second."""
    return float(max(bytes_of(2) - bytes_of(1), 0) if there > 1 else bytes_of(1))


def _tensors(network: nn.Module) -> Iterable[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _rounded(batch_size: int) -> int:
    """Two significant digits, rounded down: an estimate has no more."""
    digits = max(len(str(batch_size)) - 2, 0)
    unit: int = 10**digits
    return batch_size // unit * unit


def _text(count: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{count / size:.1f} {unit}" if count < 10 * size else f"{count / size:.0f} {unit}"
    return f"{count / 1e3:.0f} kB"
