"""The weights that are judged and saved: those in training, merged with their adapters, averaged over the steps."""

import torch
from torch import Tensor

from clip_core.model.clip import CLIP
from clip_core.training.lora import adapted, is_adapter, merged_weights

_RAW = "/raw"


class Shown:
    """A plain network that stands for the one in training.

    Without adapters and averaging it is the one in training itself. Otherwise it is a second one: merged when it is
    wanted, or the exponential moving average of the (merged) weights, moved after every step. `model.safetensors` of a
    checkpoint holds its weights; `raw` is what resuming needs beside them.
    """

    def __init__(self, training: CLIP, decay: float | None) -> None:
        self.training, self.decay = training, decay
        self.model = training
        if decay is not None or adapted(training):
            self.model = plain_copy(training)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the average, where there is one; `step` counts from 1."""
        if self.decay is not None:
            mine, theirs = self._moving()
            torch._foreach_lerp_(mine, theirs, 1.0 - decay_at(step, self.decay))

    def ready(self) -> CLIP:
        """The plain network, up to date."""
        if self.decay is None and self.model is not self.training:
            with torch.no_grad():
                for mine, theirs in zip(*self._moving(), strict=True):
                    mine.copy_(theirs)
        return self.model

    def _moving(self) -> tuple[list[Tensor], list[Tensor]]:
        """What training moves: the tensors here, and as training has them now, merged."""
        mine = dict(self.model.named_parameters())
        pairs: list[tuple[Tensor, Tensor]] = [
            (mine[name], theirs)
            for name, theirs in self.training.named_parameters()
            if theirs.requires_grad and not is_adapter(name)
        ]
        pairs += [(mine[name], linear.merged()) for name, linear in adapted(self.training).items()]
        return [pair[0] for pair in pairs], [pair[1].detach() for pair in pairs]

    def raw(self) -> dict[str, Tensor]:
        """The weights in training that `model` does not hold, as `NAME/raw`."""
        if self.model is self.training:
            return {}
        kept = adapted(self.training).keys()
        return {
            name + _RAW: parameter.detach()
            for name, parameter in self.training.named_parameters()
            if parameter.requires_grad or name in kept
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put the weights in training back, after `model` has its own; returns the tensors that were not theirs."""
        raw = {name.removesuffix(_RAW): value for name, value in tensors.items() if name.endswith(_RAW)}
        if self.model is not self.training:
            for name, parameter in self.training.named_parameters():
                if name in raw:
                    parameter.copy_(raw[name])
                elif not is_adapter(name):
                    parameter.copy_(self.model.get_parameter(name))
        return {name: value for name, value in tensors.items() if not name.endswith(_RAW)}


def decay_at(step: int, decay: float) -> float:
    """The average's decay after a step: shorter at first, so that the start does not weigh on a short run."""
    return min(decay, (1 + step) / (10 + step))


def plain_copy(model: CLIP) -> CLIP:
    """A network of its own without adapters, which nothing trains, on the same device."""
    device = model.log_logit_scale.device
    with torch.device("meta"):
        copy = CLIP(model.config)
    copy.to_empty(device=device).requires_grad_(False)
    copy.load_state_dict(merged_weights(model), strict=True)
    return copy
