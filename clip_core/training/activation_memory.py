"""The memory of one pair's activations, measured: the tensors that a forward pass saves for its backward pass.

On any device, by `torch.autograd.graph.saved_tensors_hooks`, in a forward pass of one sample and of two.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clip_core.model.clip import CLIP
from clip_core.training.activation_checkpointing import blocks_of
from clip_core.training.batches import Batch
from clip_core.training.ranks import local
from clip_core.training.train_step import TrainStep

_OF_BLOCK = 16  # activations of a block, in units of its input: norms, q, k, v, attention, twice 4 of the MLP


def bytes_of_image(step: TrainStep, batch: Batch) -> float:
    """Bytes of one image: pixels and activations."""
    network = step.mixed_precision.network

    def images(count: int) -> int:
        part = batch.rows(slice(count))
        pixels = step.images(part, step.crops(part, 0))
        kept = step.kept_patches(part, 0)
        with block_inputs(network) as inputs:
            saved = saved_bytes(network, lambda: network(pixels, None, kept))
        return saved + size_of(pixels) + _recomputed(step, inputs)

    return _slope(images, len(batch))


def bytes_of_captions(step: TrainStep, batch: Batch) -> float:
    """Bytes of all captions of the batch, each group by its own length."""
    total, network = 0.0, step.mixed_precision.network
    for group in batch.input_ids:

        def captions(count: int, group: Tensor = group) -> int:
            with block_inputs(network) as inputs:
                saved = saved_bytes(network, lambda: network(None, group[:count]))
            return saved + _recomputed(step, inputs)

        total += _slope(captions, len(group)) * len(group)
    return total


@contextmanager
def block_inputs(network: CLIP) -> Iterator[list[int]]:
    """Bytes of the input of each block that is called."""
    found: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda _, inputs: found.extend(map(size_of, inputs[:1])))
        for block in blocks_of(network)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _recomputed(step: TrainStep, inputs: list[int]) -> int:
    """Bytes that activation checkpointing keeps, which saves no tensors: the inputs of all blocks, and one block."""
    if not step.checkpointing or not inputs:
        return 0
    return sum(inputs) + _OF_BLOCK * max(inputs)


def _slope(bytes_of: Callable[[int], int], there: int) -> float:
    """Bytes that a second sample adds; those of one where there is no second."""
    return float(max(bytes_of(2) - bytes_of(1), 0) if there > 1 else bytes_of(1))


def saved_bytes(network: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes of the distinct tensors that `forward` saves for its backward pass, weights excluded."""
    weights = {local(each.detach()).untyped_storage().data_ptr() for each in tensors_of(network)}
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


def tensors_of(network: nn.Module) -> Iterable[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def size_of(tensor: Tensor) -> int:
    own = local(tensor.detach())  # its rows of this rank, where it is divided
    return own.numel() * own.element_size()
