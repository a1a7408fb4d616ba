"""The weights that are evaluated and saved: LoRA adapters merged, and the EMA over the steps."""

import copy

import torch
from torch import Tensor

from clip_core.model.clip import CLIP, uninitialised_clip
from clip_core.model.projection import ExternalEncoder
from clip_core.training.ranks import local
from clip_core.training.trainable import adapted_layers, is_adapter, merged_weights

_RAW = "/raw"


class EvalWeights:
    """A plain network with the weights to evaluate, save and export.

    Without LoRA and without EMA it is the model in training itself. Otherwise it is a second network: with LoRA alone,
    the adapters are merged when it is asked for; with an EMA, it is the exponential moving average of the (merged)
    weights, updated after every step. `model.safetensors` of a checkpoint holds its weights; `raw` is what resuming
    needs beside them. Every rank updates its own: equal weights give equal averages, bit for bit. Where both networks
    are divided among the ranks, in the same way, it updates its rows.

    Args:
        decay: of the EMA; None for no EMA.
        copied: a second network has the weights of `training` from the beginning; else `copy` gives it them.
    """

    def __init__(self, training: CLIP, decay: float | None, *, copied: bool = True) -> None:
        self.training, self.decay = training, decay
        self.model = training
        if decay is not None or adapted_layers(training):
            self.model = plain_copy(training) if copied else uninitialised_clip(training.config).requires_grad_(False)

    @torch.no_grad()
    def copy(self) -> None:
        """All weights of the network in training, adapters merged, once both are divided among the ranks."""
        adapted = adapted_layers(self.training)
        for name, mine in self.model.named_parameters():
            theirs = adapted[name].merged() if name in adapted else local(self.training.get_parameter(name).detach())
            local(mine).copy_(theirs)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self.training.get_buffer(name))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Update the EMA, if there is one; `step` counts from 1."""
        if self.decay is not None:
            averages, weights = self._trained()
            torch._foreach_lerp_(averages, weights, 1.0 - decay_at(step, self.decay))

    def ready(self) -> CLIP:
        """The plain network, up to date; where networks are divided, ranks call this together."""
        if self.decay is None and self.model is not self.training:
            with torch.no_grad():
                for mine, theirs in zip(*self._trained(), strict=True):
                    mine.copy_(theirs)
        return self.model

    def _trained(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors of this network that training changes, and their current values in the other, merged."""
        mine = {name: local(parameter.detach()) for name, parameter in self.model.named_parameters()}
        pairs: list[tuple[Tensor, Tensor]] = [
            (mine[name], local(theirs.detach()))
            for name, theirs in self.training.named_parameters()
            if theirs.requires_grad and not is_adapter(name)
        ]
        pairs += [(mine[name], linear.merged()) for name, linear in adapted_layers(self.training).items()]
        return [pair[0] for pair in pairs], [pair[1].detach() for pair in pairs]

    def raw(self) -> dict[str, Tensor]:
        """The weights in training that `model` does not hold, as `NAME/raw`."""
        if self.model is self.training:
            return {}
        under_adapters = adapted_layers(self.training).keys()
        return {
            name + _RAW: parameter.detach()
            for name, parameter in self.training.named_parameters()
            if parameter.requires_grad or name in under_adapters
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put the weights in training back, after `model` has its own; returns the tensors that are no weights.

        Args:
            tensors: of state.safetensors; where networks are divided, the rows of this rank.
        """
        raw = {name.removesuffix(_RAW): value for name, value in tensors.items() if name.endswith(_RAW)}
        if self.model is not self.training:
            for name, parameter in self.training.named_parameters():
                if name in raw:
                    local(parameter).copy_(raw[name])
                elif not is_adapter(name):
                    local(parameter).copy_(local(self.model.get_parameter(name)))
            for name, buffer in self.training.named_buffers():  # which training does not change
                buffer.copy_(self.model.get_buffer(name))
        return {name: value for name, value in tensors.items() if not name.endswith(_RAW)}


def decay_at(step: int, decay: float) -> float:
    """The decay of the EMA after a step: lower at first, so that the initial weights are forgotten in a short run."""
    return min(decay, (1 + step) / (10 + step))


def plain_copy(model: CLIP) -> CLIP:
    """A second network with the weights of `model`, adapters merged, all frozen, on the same device."""
    if any(tower.unfrozen for tower in model.config.external):  # encoders whose network only their source describes
        return copy.deepcopy(model).requires_grad_(False)
    device = model.log_logit_scale.device
    plain = uninitialised_clip(model.config).to(device).requires_grad_(False)
    plain.load_state_dict(merged_weights(model), strict=True)
    for mine, theirs in ((plain.image, model.image), (plain.text, model.text)):
        if isinstance(mine, ExternalEncoder) and isinstance(theirs, ExternalEncoder) and theirs.encoder is not None:
            mine.attach(theirs.encoder)
    return plain
