"""Networks that do not fit on one device: every parameter is divided among the ranks by rows (FSDP2).

torch gathers the parameters of a block before it computes and frees them after it; gradients are averaged over the
ranks and divided alike. What is here: which parts are gathered together, the rows of this rank as plain parameters for
the optimiser, and whole tensors for checkpoints, one at a time.

Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (arXiv
1910.02054), stage 3; Zhao et al. 2023, "PyTorch FSDP" (arXiv 2304.11277).
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from clip_core.model.checkpoint import STATE_TENSORS, stored_weights
from clip_core.model.clip import CLIP
from clip_core.model.weight_files import open_weights
from clip_core.training.activation_checkpointing import blocks_of
from clip_core.training.processes import same_on_all
from clip_core.training.ranks import Rank, local, whole


def shard(network: CLIP, device: torch.device, dtype: torch.dtype, rank: Rank, *, of_first: bool = True) -> None:
    """Divide the parameters of a network among the ranks, and move them to the device.

    Each block is gathered by itself, and so is everything that is in none; neither the device nor the memory of the
    host, where values were not set before, holds more at once. Scalars (the log temperature and the logit bias) stay
    whole, in fp32, and their gradients are those of this rank alone.

    Args:
        dtype: that blocks compute in; the rows of this rank, their gradients and the sums of gradients stay fp32.
        of_first: all ranks get the values of rank 0; else each keeps its own.
    """
    mesh = init_device_mesh(device.type, (rank.size,))
    policy = MixedPrecisionPolicy(None if dtype is torch.float32 else dtype, reduce_dtype=torch.float32)
    scalars = {parameter for parameter in network.parameters() if not parameter.ndim}
    for part in (*blocks_of(network), network):
        if of_first:
            values = (value.detach() for value in (*part.parameters(), *part.buffers()))
            same_on_all([value for value in values if not isinstance(value, DTensor)], device)
        ignored = scalars if part is network else None
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=ignored)
    for parameter in scalars:
        parameter.data = parameter.data.to(device)


def rows_of(parameter: Tensor, values: Tensor) -> Tensor:
    """The rows of `values` that are those of this rank of a parameter of the same shape, on its device."""
    if not isinstance(parameter, DTensor) or values.shape != parameter.shape:
        return values.to(parameter.device)
    mine = distribute_tensor(
        values.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
    return mine.to_local().clone()  # which does not hold the whole tensor


def divided_as(parameter: Tensor, rows: Tensor) -> Tensor:
    """Rows of this rank as a tensor that `whole` gathers, where the parameter is one."""
    if not isinstance(parameter, DTensor) or isinstance(rows, DTensor) or rows.shape != parameter.to_local().shape:
        return rows
    return DTensor.from_local(
        rows, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


def local_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The rows of this rank of every parameter, as plain parameters in the same memory, for an optimiser."""
    return {
        name: nn.Parameter(local(parameter.detach()), requires_grad=parameter.requires_grad)
        if isinstance(parameter, DTensor)
        else parameter
        for name, parameter in network.named_parameters()
    }


def move_gradients(network: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Give the gradients of the network to those of `local_parameters`."""
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and parameters[name] is not parameter:
            parameters[name].grad = local(parameter.grad)
            parameter.grad = None


class DividedMuon(torch.optim.Muon):
    """Muon of matrices whose rows are divided among the ranks.

    Momentum stays divided. Each update is gathered by itself, in bf16, in which it is made orthogonal, by every rank.

    Args:
        groups: of rows, with weight decays and learning rates.
        of: the parameters that the rows are of.
        settings: of torch's Muon.
    """

    def __init__(self, groups: list[dict[str, Any]], of: Mapping[nn.Parameter, nn.Parameter], **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._of, self._settings = of, settings | {"lr": 1.0, "weight_decay": 0.0, "momentum": 0.0, "nesterov": False}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for rows in group["params"]:
                if rows.grad is not None:
                    self._update(rows, rows.grad, group)

    def _update(self, rows: nn.Parameter, gradient: Tensor, group: Mapping[str, Any]) -> None:
        matrix, state = self._of[rows], self.state[rows]
        momentum = state.setdefault("momentum_buffer", torch.zeros_like(rows))
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"])  # Nesterov's
        direction = nn.Parameter(torch.zeros(matrix.shape, device=rows.device))
        direction.grad = whole(divided_as(matrix, update.bfloat16())).float()
        alone = torch.optim.Muon([direction], **self._settings)  # without momentum, whose step from 0 is the direction
        inspect.unwrap(type(alone).step)(alone)
        rows.mul_(1 - group["lr"] * group["weight_decay"])
        rows.add_(rows_of(matrix, direction.detach()), alpha=group["lr"])


def gradient_norm(divided: list[Tensor], replicated: list[Tensor]) -> Tensor:
    """The norm over all ranks of the rows of this rank, and of gradients that every rank has.  -> ()"""
    square = nn.utils.get_total_norm(divided).square()
    torch.distributed.all_reduce(square)
    return (square + nn.utils.get_total_norm(replicated).square()).sqrt()


def on_first(tensors: Iterable[tuple[str, Tensor]], rank: Rank) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors on the CPU of rank 0, gathered one at a time; none on the others, which call this together."""
    for name, tensor in tensors:
        gathered = whole(tensor.detach())
        if rank.writes:
            yield name, gathered.cpu()


def gather_checkpoint(
    network: nn.Module, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], rank: Rank
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights to evaluate and the other tensors of a checkpoint, whole, as `on_first` gives them.

    Args:
        network: in training.
        tensors: by NAME/KEY, the rows of this rank where they are of a parameter of the network.
    """
    parameters = dict(network.named_parameters())
    divided = ((name, divided_as(parameters[name.rpartition("/")[0]], rows)) for name, rows in tensors.items())
    return dict(on_first(weights.items(), rank)), dict(on_first(divided, rank))


def load_rows(network: nn.Module, evaluated: CLIP, folder: Path) -> dict[str, Tensor]:
    """Load the rows of this rank of the weights of a checkpoint; returns those of its other tensors, by NAME/KEY.

    Args:
        network: in training, with the names of the other tensors.
        evaluated: whose weights are loaded.
    """
    for name, value in stored_weights(evaluated, folder):
        own = evaluated.state_dict(keep_vars=True)[name]
        local(own.detach()).copy_(rows_of(own, value))
    parameters = dict(network.named_parameters())
    return {
        name: rows_of(parameters[name.rpartition("/")[0]], stored.read())
        for name, stored in open_weights(folder / STATE_TENSORS).tensors.items()
    }
