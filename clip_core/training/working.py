"""What a step computes with: the network itself, or a copy of it in bf16."""

import copy

import torch
from torch import Tensor

from clip_core.model.clip import CLIP


class Working:
    """The network as forward and backward see it, in the precision of the run.

    In fp32 it is the network itself. In bf16 it is a copy whose weights, activations and gradients are bf16, while the
    network keeps its weights, and the optimiser its moments, in fp32 (Micikevicius et al. 2018, "Mixed precision
    training"). Autocast would convert the same numbers to and fro in every layer instead. Scalars, which are the
    temperature and the bias of the logits, are fp32 in both.
    """

    def __init__(self, model: CLIP, precision: str) -> None:
        self.model = model
        self.dtype = torch.float32
        self._above: list[Tensor] = []
        self._below: list[Tensor] = []
        if precision == "bf16":
            self.dtype = torch.bfloat16
            self.model = copy.deepcopy(model)
            for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
                mine.data = theirs.data.to(self.dtype) if theirs.ndim else theirs.data.clone()
                mine.grad = None
                if theirs.requires_grad:
                    self._above.append(theirs)
                    self._below.append(mine)
        self._gradients = [torch.empty_like(theirs) for theirs in self._above]

    @torch.no_grad()
    def refresh(self) -> CLIP:
        """Bring the copy up to date with the weights that move; returns what to call."""
        if self._below:
            torch._foreach_copy_(self._below, self._above)
        return self.model

    @torch.no_grad()
    def hand_over(self) -> None:
        """Give the gradients to the weights that move, in fp32, in memory that stays; those of the copy are gone."""
        given: list[Tensor] = []
        taken: list[Tensor] = []
        for theirs, mine, gradient in zip(self._above, self._below, self._gradients, strict=True):
            theirs.grad = None
            if mine.grad is not None:
                theirs.grad = gradient
                taken.append(gradient)
                given.append(mine.grad)
                mine.grad = None
        if given:
            torch._foreach_copy_(taken, given)
