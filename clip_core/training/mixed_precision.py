"""Mixed precision: the network that computes, and the fp32 weights above it.

Source: Micikevicius et al. 2018, "Mixed precision training".
"""

import copy

import torch
from torch import Tensor, nn

from clip_core.model.clip import CLIP
from clip_core.model.library_tower import LibraryTower


class MixedPrecision:
    """A network in the precision of the run over fp32 master weights.

    `network` is the one module of forward and backward, from the first step to the last, so DDP can wrap it. In fp32 it
    is the model itself. In bf16 it is a copy whose weights, activations and gradients are bf16; the model keeps the
    fp32 weights that the optimiser updates and checkpoints save. Autocast would convert the same weights again in every
    layer instead. Scalars (the log temperature and the logit bias) are fp32 in both, and so are the weights of batch
    normalisation, which PyTorch computes with fp32 statistics.

    A step is: forward and backward through `network` (DDP averages the gradients of the ranks there),
    `gradients_to_master`, the update of the model, `weights_to_network`. All ranks do the same with the same numbers.

    Where the network is sharded (sharding.py) it is not `copied`: FSDP2 gathers each block in bf16 out of fp32 rows.
    """

    def __init__(self, model: CLIP, precision: str, *, copied: bool = True) -> None:
        self.model = self.network = model
        self.dtype = torch.float32
        self._master: list[Tensor] = []  # trainable fp32 parameters of the model, and those of the network
        self._working: list[Tensor] = []
        if precision == "bf16":
            self.dtype = torch.bfloat16
        if precision == "bf16" and copied:
            kept = _in_fp32(model)
            working = {
                id(master): _copied(master, master.dtype if id(master) in kept else self.dtype)
                for master in model.parameters()
            }
            self.network = copy.deepcopy(model, memo=dict(working))  # modules alone; fp32 weights are never copied
            _round_buffers(self.network, self.dtype)
            self._master = [master for master in model.parameters() if master.requires_grad]
            self._working = [working[id(master)] for master in self._master]
        self._gradients = [torch.empty_like(master) for master in self._master]

    @torch.no_grad()
    def weights_to_network(self) -> None:
        """Round the trainable weights of the model to the network's precision."""
        if self._working:
            torch._foreach_copy_(self._working, self._master)

    @torch.no_grad()
    def reload(self) -> None:
        """Round all weights of the model, the frozen ones too: after a checkpoint was loaded."""
        if self.network is not self.model:
            torch._foreach_copy_(list(self.network.parameters()), list(self.model.parameters()))
            for mine, theirs in zip(self.network.buffers(), self.model.buffers(), strict=True):
                mine.copy_(theirs)

    @torch.no_grad()
    def gradients_to_master(self) -> None:
        """Add the gradients of the network to those of the model, in fp32, in memory that is kept between steps."""
        first: tuple[list[Tensor], list[Tensor]] = ([], [])
        more: tuple[list[Tensor], list[Tensor]] = ([], [])
        for master, working, gradient in zip(self._master, self._working, self._gradients, strict=True):
            if working.grad is not None:
                of_master, of_working = first if master.grad is None else more
                master.grad = gradient
                of_master.append(gradient)
                of_working.append(working.grad)
                working.grad = None
        if first[0]:
            torch._foreach_copy_(*first)
        if more[0]:
            torch._foreach_add_(*more)


def _in_fp32(model: nn.Module) -> set[int]:
    """Identities of the parameters that are never rounded."""
    scalars = {id(master) for master in model.parameters() if master.ndim == 0}
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return scalars | {id(master) for norm in norms for master in norm.parameters()}


def _round_buffers(network: nn.Module, dtype: torch.dtype) -> None:
    """Fixed positions of the towers of other libraries, which are added to activations; batch statistics stay fp32."""
    for tower in network.modules():
        for module in tower.modules() if isinstance(tower, LibraryTower) else ():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                for name, buffer in module.named_buffers(recurse=False):
                    if buffer.is_floating_point():
                        setattr(module, name, buffer.to(dtype))


def _copied(master: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    weights = master.detach().to(dtype, copy=True)
    return nn.Parameter(weights, requires_grad=master.requires_grad)
