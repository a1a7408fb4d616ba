"""Batches larger than memory: the gradient of the whole batch, with the activations of a chunk at a time.

A contrastive loss compares every pair of the batch with every other, so summing the gradients of small batches would be
another objective. Instead, each chunk is embedded without a graph; the loss of all embeddings gives the gradient of
every embedding; then each chunk is embedded again, with a graph, and that gradient is sent back through it.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983).

Shapes: b pairs of this rank, U distinct captions among these, D embedding.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from clip_core.model.clip import Embeddings

Measured = TypeVar("Measured")

# Of messages of torch and of oneDNN, which have no class of their own.
_NO_MEMORY = (
    "allocate memory", "not enough memory", "out of memory", "could not create a primitive",
    "could not execute a primitive", "could not create a memory",
)  # fmt: skip


class Chunk(NamedTuple):
    """Some images of a batch, and some of its captions, which need not be those of the images."""

    rows: slice
    input_ids: tuple[Tensor, ...]  # parts of the batch's groups; none where there are fewer captions than chunks


def split(pairs: int, groups: Sequence[Tensor], size: int) -> list[Chunk]:
    """A batch in chunks of at most `size` images and captions, as equal as possible.

    Args:
        pairs: b.
        groups: captions, (G, ...) each, U <= b in all.
    Returns:
        The chunks; the last one always has images and captions, so that it reaches every parameter.
    """
    count = -(-pairs // size)
    captions = sum(len(group) for group in groups)
    chunks = []
    for number in range(count):
        low, high = (captions * n // count for n in (number, number + 1))
        rows = slice(pairs * number // count, pairs * (number + 1) // count)
        chunks.append(Chunk(rows, _between(groups, low, high)))
    return chunks


def _between(groups: Sequence[Tensor], low: int, high: int) -> tuple[Tensor, ...]:
    """Captions `low` to `high` of all groups, in their groups."""
    found, start = [], 0
    for group in groups:
        part = group[max(low - start, 0) : max(high - start, 0)]
        if len(part):
            found.append(part)
        start += len(group)
    return tuple(found)


def cached_backward(
    chunks: Sequence[Callable[[], Embeddings]],
    loss_of: Callable[[Embeddings], tuple[Tensor, Measured]],
    backward: Callable[[Tensor], None],
) -> tuple[Tensor, Measured]:
    """Loss and gradient of a whole batch, from the chunks that it is embedded in.

    Args:
        chunks: each embeds its part of the batch; called twice, it must compute the same both times.
        loss_of: the loss of all images (b, D) and all captions (U, D), and what is measured with it.
        backward: adds to the gradients of the weights; called once for each chunk.
    Returns:
        The loss, (), and what was measured.
    """
    with torch.no_grad():
        parts = [embed() for embed in chunks]
    image = _leaf(torch.cat([part.image for part in parts if part.image is not None]))
    text = _leaf(torch.cat([part.text for part in parts if part.text is not None]))
    scale, bias = _leaf(parts[-1].logit_scale), parts[-1].logit_bias
    bias = None if bias is None else _leaf(bias)
    del parts
    loss, measured = loss_of(Embeddings(image, text, scale, bias))
    torch.autograd.backward(loss)
    loss = loss.detach()  # its graph, with the logits of the whole batch, is no longer needed
    images = captions = 0
    for number, embed in enumerate(chunks):
        part = embed()
        assert part.image is not None
        terms = [_weighted(part.image, image, images)]
        images += len(part.image)
        if part.text is not None:
            terms.append(_weighted(part.text, text, captions))
            captions += len(part.text)
        if number == len(chunks) - 1:
            terms.append(_weighted(part.logit_scale, scale))
            if bias is not None and part.logit_bias is not None and bias.grad is not None:
                terms.append(_weighted(part.logit_bias, bias))
        total = torch.stack(terms).sum()
        if total.requires_grad:  # else the chunk has images alone, and their tower is frozen
            backward(total)
    return loss, measured


def _leaf(values: Tensor) -> Tensor:
    return values.detach().requires_grad_()


def _weighted(again: Tensor, leaf: Tensor, start: int | None = None) -> Tensor:
    """A scalar whose gradient in `again` is that of the loss in these rows of `leaf`."""
    assert leaf.grad is not None
    return (again * (leaf.grad if start is None else leaf.grad[start : start + len(again)])).sum()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
