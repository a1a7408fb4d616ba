"""Mixed precision: the network that computes, and the fp32 weights above it.

Source: Micikevicius et al. 2018, "Mixed precision training".
"""

import copy

import torch
from torch import Tensor, nn

from clip_core.model.clip import CLIP


class MixedPrecision:
    """A network in the precision of the run over fp32 master weights.

    `network` is the one module of forward and backward, from the first step to the last, so DDP can wrap it. In fp32 it
    is the model itself. In bf16 it is a copy whose weights, activations and gradients are bf16; the model keeps the
    fp32 weights that the optimiser updates and checkpoints save. Autocast would convert the same weights again in every
    layer instead. Scalars (the log temperature and the logit bias) are fp32 in both.

    A step is: forward and backward through `network` (DDP averages the gradients of the ranks there),
    `gradients_to_master`, the update of the model, `weights_to_network`. All ranks do the same with the same numbers.
    """

    def __init__(self, model: CLIP, precision: str) -> None:
        self.model = self.network = model
        self.dtype = torch.float32
        self._master: list[Tensor] = []  # trainable fp32 parameters of the model, and those of the network
        self._working: list[Tensor] = []
        if precision == "bf16":
            self.dtype = torch.bfloat16
            working = {id(master): _rounded(master, self.dtype) for master in model.parameters()}
            self.network = copy.deepcopy(model, memo=dict(working))  # modules alone; fp32 weights are never copied
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


def _rounded(master: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    weights = master.detach().to(dtype if master.ndim else master.dtype, copy=True)
    return nn.Parameter(weights, requires_grad=master.requires_grad)
