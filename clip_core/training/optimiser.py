"""Muon for the matrices of the blocks and AdamW for the rest, or AdamW for all."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clip_core.model.clip import CLIP
from clip_core.model.library_tower import LibraryTower
from clip_core.model.projection import ExternalEncoder

# Parts of a tower before its first block.
_EMBEDDINGS = ("patches", "class_token", "tokens", "positions", "norm_pre")
# Methods of torch's optimisers that import TorchDynamo on their first call, to keep themselves out of torch.compile.
_OUTSIDE_COMPILE = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
_ITERATIONS = 3  # of Newton-Schulz: the usual five learn no more here and cost two thirds more (docs/log.md)


class Optimiser:
    """One or two of torch's optimisers over the trainable parameters, used as one.

    Args:
        weight_decay: of matrices; norms, biases, positions, temperature and logit bias have none.
        layer_decay: X gives the layers after the blocks the whole learning rate, the last block X of it, the one before
            X * X (Bao et al. 2021, "BEiT").
        muon: optimise the matrices of the Transformer blocks by Muon (Jordan et al. 2024; updates scaled so that
            AdamW's learning rate and weight decay apply, Liu et al. 2025, "Muon is scalable for LLM training"), the
            rest by AdamW (Loshchilov & Hutter 2019).
        rows: the rows that this rank has of each parameter, by name, where they are divided (sharding.py).
    Attributes:
        parameters: by name, those of the model, or `rows`.
    """

    def __init__(
        self,
        model: CLIP,
        *,
        lr: float,
        weight_decay: float,
        beta2: float,
        device: torch.device,
        layer_decay: float = 1.0,
        muon: bool = False,
        rows: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        _skip_dynamo()
        self.parameters = dict(rows or model.named_parameters())
        groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
        above = _layers_above_library(model)
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                matrix = muon and parameter.ndim == 2 and ".blocks." in name
                decay = weight_decay if parameter.ndim >= 2 and "positions" not in name else 0.0
                share = layer_decay ** (above[name] if name in above else layers_above(model, name))
                groups.setdefault((matrix, decay, share), []).append(parameter)

        def param_groups(matrices: bool) -> list[dict[str, Any]]:
            return [
                {"params": members, "weight_decay": decay, "lr": lr * share, "lr_share": share}
                for (matrix, decay, share), members in groups.items()
                if matrix is matrices
            ]

        self._parts: list[torch.optim.Optimizer] = []
        if rest := param_groups(matrices=False):
            fused = device.type in ("cuda", "cpu")
            self._parts.append(torch.optim.AdamW(rest, lr=lr, betas=(0.9, beta2), eps=1e-8, fused=fused))
        if matrices := param_groups(matrices=True):
            self._parts.append(_muon(model, matrices, lr, rows))

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups: `params`, `weight_decay`, and `lr_share`, the share of the learning rate."""
        return [group for part in self._parts for group in part.param_groups]

    def state_bytes(self) -> int:
        """Bytes of the moments, which come with the first step: two of AdamW's, one of Muon's."""
        total = 0
        for part in self._parts:
            moments = 1 if isinstance(part, torch.optim.Muon) else 2
            members = [member for group in part.param_groups for member in group["params"]]
            total += moments * sum(member.numel() * member.element_size() for member in members)
        return total

    def set_learning_rate(self, lr: float) -> None:
        for group in self.groups:
            group["lr"] = lr * group["lr_share"]

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self) -> None:
        for part in self._parts:
            inspect.unwrap(type(part).step)(part)  # without torch's wrappers, which import TorchDynamo

    def tensors(self) -> dict[str, Tensor]:
        """The moments by parameter name: `image.blocks.0.mlp.0.weight/exp_avg`; none before the first gradient."""
        return {
            f"{name}/{key}": torch.as_tensor(value)
            for name, parameter in self.parameters.items()
            for part in self._parts
            for key, value in part.state.get(parameter, {}).items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Load moments from `tensors`, bit for bit, in place of those that are there."""
        for part in self._parts:
            part.state.clear()
        of = {member: part for part in self._parts for group in part.param_groups for member in group["params"]}
        for full_name, value in tensors.items():
            name, _, key = full_name.rpartition("/")
            parameter = self.parameters[name]
            # Fused AdamW needs its step counter on the device of the parameter.
            of[parameter].state[parameter][key] = value.to(parameter.device)


def _muon(
    model: CLIP, groups: list[dict[str, Any]], lr: float, rows: Mapping[str, nn.Parameter] | None
) -> torch.optim.Muon:
    settings: dict[str, Any] = {
        "lr": lr,
        "momentum": 0.95,
        "ns_steps": _ITERATIONS,
        "adjust_lr_fn": "match_rms_adamw",
    }
    if rows is None:
        return torch.optim.Muon(groups, **settings)
    from clip_core.training.sharding import DividedMuon  # it imports FSDP2

    of = {rows[name]: parameter for name, parameter in model.named_parameters()}
    return DividedMuon(groups, of, **settings)


def _skip_dynamo() -> None:
    """Call these methods as they are: nothing here is compiled, and the import takes about 2 s of CPU time."""
    for name in _OUTSIDE_COMPILE:
        original = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if original is not None:
            setattr(original, "__dynamo_disable", original)


def layers_above(model: CLIP, name: str) -> int:
    """Layers between a parameter and the end of its tower: 0 after the blocks, 1 in the last, most before the first."""
    tower, _, rest = name.partition(".")
    if tower not in ("image", "text"):
        return 0
    module = model.image if tower == "image" else model.text
    layers = len(module.blocks)
    if isinstance(module, ExternalEncoder):
        return _layers_above_external(module, rest)
    part, *place = rest.split(".")
    if part == "blocks":
        return layers - int(place[0])
    return layers + 1 if part in _EMBEDDINGS else 0


def _layers_above_library(model: CLIP) -> dict[str, int]:
    """As `layers_above`, of each parameter of a tower that another library builds."""
    return {
        f"{side}.{name}": layers
        for side, tower in (("image", model.image), ("text", model.text))
        if isinstance(tower, LibraryTower)
        for name, layers in tower.layers_above().items()
    }


def _layers_above_external(tower: ExternalEncoder, name: str) -> int:
    if name.startswith("head."):
        return 0
    parameter, blocks = tower.get_parameter(name), tower.blocks
    inside = (n for n, block in enumerate(blocks) if any(parameter is member for member in block.parameters()))
    return len(blocks) - next(inside, -1)
