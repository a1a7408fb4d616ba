"""The memory of a training run, estimated before its first step, and the largest batch that fits.

What the weights need (gradients, optimiser state) is counted, and what a pair needs is measured (activation_memory.py).
On a GPU, whose allocator and kernels take memory of their own, what fits is found by trial instead.

Shapes: B pairs in the batch of all ranks, b of this rank, D embedding.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from clip_core.model.cpu_speed import give_back_memory
from clip_core.training.activation_checkpointing import blocks_of
from clip_core.training.activation_memory import bytes_of_captions, bytes_of_image, size_of, tensors_of
from clip_core.training.batches import Batch
from clip_core.training.cached_gradient import out_of_memory
from clip_core.training.loss import Gathered, Negatives, matching_pairs
from clip_core.training.processes import Processes
from clip_core.training.train_step import TrainStep

_LOGITS = 24  # bytes of each of the B x B pairs: logits, their softmax both ways, matches
_WRONG_LOGITS = 16  # bytes more of each with hard negatives
_BACKWARD = 1.15  # gradients of activations, which exist for a few layers at a time, on top of what is saved
_LARGEST = 2**20
_EMBEDDINGS = 24  # bytes of each number of a pair's two embeddings, of all chunks: themselves, and their gradients
_USED = 0.8  # share of the available memory of a CPU that chunks may take; other processes need some too
_CGROUP = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training takes on its device.

    `weights`: of the weights, their copies in bf16 and in the EMA, which exist already. `state`: of gradients and
    optimiser state, which come with the first step. `per_pair`: of the activations of one pair. `available`: free
    memory before the first step. `batch_size`: b. `embed_dim`: D. `ranks`: B / b. `hard_negatives`: with as many wrong
    captions.
    """

    weights: int
    state: int
    per_pair: float
    available: int
    batch_size: int
    embed_dim: int = 0
    ranks: int = 1
    hard_negatives: bool = False

    def of_step(self, batch_size: int) -> float:
        """What the first step adds, at a batch size, in one forward pass."""
        return self.state + self.per_pair * batch_size + self.of_loss(batch_size)

    def of_loss(self, batch_size: int) -> float:
        """The logits of the pairs of this rank with those of all."""
        return (_LOGITS + _WRONG_LOGITS * self.hard_negatives) * batch_size**2 * self.ranks

    def of_chunks(self, chunk_size: int) -> float:
        """What the first step adds, at the batch size of the run, in chunks: the logits are not there beside them."""
        embeddings = _EMBEDDINGS * self.embed_dim * self.batch_size * self.ranks
        return self.state + embeddings + max(self.per_pair * chunk_size, self.of_loss(self.batch_size))

    @property
    def largest_chunk(self) -> int:
        """The largest of equal chunks that fits into what is available, with some left over; 0 if none does."""
        room = _USED * self.available - self.of_chunks(0)
        if room < 0:
            return 0
        most = int((room + self.of_loss(self.batch_size)) / max(self.per_pair, 1))
        return equal_chunks(self.batch_size, min(most, self.batch_size)) if most else 0

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

    def chunks_line(self, chunk_size: int) -> str:
        """That the batch is computed in chunks, in one line of the log."""
        count, needs = -(-self.batch_size // chunk_size), _text(self.of_chunks(chunk_size))
        return (
            f"chunks of {chunk_size} pairs, {count} a batch, with the gradient of the whole batch: about {needs} in "
            f"place of {_text(self.of_step(self.batch_size))}; every pair is embedded twice"
        )

    def warning(self, chunk_size: int = 0) -> str | None:
        """What to do where the batch, or a chunk of it, does not fit; None where it does."""
        needs = self.of_chunks(chunk_size) if 0 < chunk_size < self.batch_size else self.of_step(self.batch_size)
        if needs <= self.available:
            return None
        smaller, chunk = _rounded(self.largest_batch), self.largest_chunk
        remedy = (
            f"use --chunk-size {chunk}" if chunk
            else f"use --batch-size {smaller}" if smaller >= 2
            else "use a smaller model, or a device with more memory"
        )  # fmt: skip
        what = f"a chunk of {chunk_size}" if 0 < chunk_size < self.batch_size else f"a batch of {self.batch_size}"
        return f"{what} needs about {_text(needs)} of memory, and {_text(self.available)} are available: {remedy}"


def equal_chunks(batch_size: int, chunk_size: int) -> int:
    """The least chunk size that needs no more chunks than this one does."""
    count = -(-batch_size // chunk_size)
    return -(-batch_size // count)


def fit_into_memory(
    step: TrainStep,
    batch: Batch,
    processes: Processes,
    *,
    before: int,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Say what a run will need, choose the chunks where its batch does not fit, and warn if they do not either.

    Args:
        step: before its first call; its chunk size is set, where none was given.
        batch: on the device of `step`.
        processes: which choose alike.
        before: the chunk size that a resumed run had, which it keeps, so that its sums are rounded as they were; or 0.
    """
    estimate = estimate_memory(step, batch)
    say(estimate.line())
    if not step.chunk_size:
        chosen = before or choose_chunk(step, batch, estimate) or len(batch)
        least = -processes.most(-chosen)[0]
        step.chunk_size = int(least) if least < len(batch) else 0
    if 0 < step.chunk_size < len(batch):
        say(estimate.chunks_line(step.chunk_size))
    if (step.chunk_size or not processes.alone) and step.normalises_batches:
        where = "chunk" if step.chunk_size else "process"
        warn(f"batch normalisation takes its statistics over each {where}, not over the whole batch")
    if warning := estimate.warning(step.chunk_size):
        warn(warning)


def estimate_memory(step: TrainStep, batch: Batch) -> MemoryEstimate:
    """The memory of a run, from its first batch; random numbers and weights stay as they are.

    Args:
        step: before its first call.
        batch: on the device of `step`.
    """
    network = step.mixed_precision.network  # past DDP, which expects a backward pass after each call
    trained = [parameter for parameter in step.model.parameters() if parameter.requires_grad]
    if network is not step.model:
        trained += [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = sum(map(size_of, trained))
    gathered = _gathered(step) if step.sharded else 0
    networks = (step.model, network, step.eval_weights.model)
    held = {id(each): each for one in networks for each in tensors_of(one)}
    training = network.training
    network.eval()  # so that no running mean changes
    per_pair = bytes_of_image(step, batch) + bytes_of_captions(step, batch) / len(batch)
    network.train(training)
    return MemoryEstimate(
        weights=sum(map(size_of, held.values())),
        state=gradients + step.optimiser.state_bytes() + gathered,
        per_pair=per_pair * _BACKWARD,
        available=available_memory(step.device),
        batch_size=len(batch),
        embed_dim=step.model.config.embed_dim,
        ranks=step.rank.size,
        hard_negatives=batch.negative_rows is not None,
    )


def choose_chunk(step: TrainStep, batch: Batch, estimate: MemoryEstimate) -> int:
    """The largest chunk that fits, by the estimate on a CPU and by trial on a GPU; 0 for the whole batch.

    A sharded network cannot be tried by one rank alone, so there it is the estimate on a GPU too.

    Args:
        step: before its first call.
        batch: on the device of `step`.
    """
    if step.device.type != "cuda" or step.sharded:
        return 0 if estimate.fits else estimate.largest_chunk
    size = len(batch) if estimate.fits else min(2 * max(estimate.largest_chunk, 1), len(batch))
    while size > 1 and not fits_by_trial(step, batch, size):
        size = equal_chunks(len(batch), -(-size // 2))
    return 0 if size == len(batch) else size


def fits_by_trial(step: TrainStep, batch: Batch, chunk_size: int) -> bool:
    """Whether forward pass, loss and backward pass fit beside the state of the optimiser, without training.

    Nothing is exchanged with other ranks. Gradients are dropped again.
    """
    beside: list[Tensor] = []
    try:
        beside.append(torch.empty(step.optimiser.state_bytes(), dtype=torch.uint8, device=step.device))
        _try_loss(step, batch)
        part = batch.rows(slice(chunk_size))
        captions = tuple(group[: -(-chunk_size * len(group) // len(batch))] for group in batch.input_ids)
        crops, kept = step.crops(part, 0), step.kept_patches(part, 0)
        image, text, *_ = step.mixed_precision.network(step.images(part, crops), captions, kept)
        if chunk_size == len(batch):  # the activations are there beside the logits
            _try_loss(step, batch)
        total = image.sum() + text.sum()
        if total.requires_grad:
            torch.autograd.backward(total)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        for network in (step.model, step.mixed_precision.network):
            network.zero_grad(set_to_none=True)
        if step.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            give_back_memory()
    return True


def _try_loss(step: TrainStep, batch: Batch) -> None:
    """Loss and gradient of random embeddings: the memory of the logits."""
    rows, columns, width = len(batch), len(batch.all_image_ids), step.model.config.embed_dim
    image, text, wrong = (torch.randn(columns, width, device=step.device, requires_grad=True) for _ in range(3))
    scale = step.model.logit_scale().detach()
    matches = matching_pairs(batch.image_ids, batch.caption_ids, batch.all_image_ids, batch.all_caption_ids)
    bias = torch.zeros((), device=step.device)
    negatives = None if batch.negative_rows is None else Negatives(wrong, torch.zeros_like(matches))
    loss, _ = step.loss(image[:rows], text[:rows], scale, matches, bias, Gathered(image, text), negatives)
    torch.autograd.backward(loss)


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated: of a GPU, or a process's share of the machine or of the container's limit."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    free = int(psutil.virtual_memory().available)
    for limit, usage in _CGROUP:
        try:
            free = min(free, int(limit.read_text()) - int(usage.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return max(free, 0) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _gathered(step: TrainStep) -> int:
    """Bytes of what a sharded network gathers at once, and of its gradients: two blocks, and all that is in none."""
    each = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks_of(step.model)]
    rest = sum(parameter.numel() for parameter in step.model.parameters()) - sum(each)
    at_once = rest + sum(sorted(each)[-2:])
    return at_once * (2 * step.mixed_precision.dtype.itemsize + 4)  # weights, gradients, and these in fp32 for the sum


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
