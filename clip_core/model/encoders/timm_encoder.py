"""Image encoders of timm: by name, from a folder with timm's config.json, or an architecture with a file of weights.

Weights are read by this project's own readers; nothing is downloaded or unpickled by timm.
"""

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_core.errors import CheckpointError, UsageError
from clip_core.model.encoders.base import EncoderInfo, Features, FrozenEncoder, blocks_of, parameter_count
from clip_core.model.encoders.files import CONFIG, absolute, identity_of, licence_of, read_settings, require, weights_in
from clip_core.model.encoders.preprocessing import timm_preprocessing
from clip_core.model.weight_files import open_weights
from clip_core.text import printable

PREFIX = "timm:"
_MOST_LISTED = 5
_NOT_ARGUMENTS = (
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
    "num_classes",
)


@dataclass(frozen=True)
class TimmSource:
    """An architecture of timm, the file of its weights, and the folder that may name a licence."""

    name: str
    architecture: str
    weights: Path
    settings: Mapping[str, Any] = field(default_factory=dict)  # pretrained_cfg of the folder
    arguments: Mapping[str, Any] = field(default_factory=dict)  # model_args


class TimmEncoder(FrozenEncoder):
    """A network of timm without its classifier."""

    def __init__(self, info: EncoderInfo, model: nn.Module) -> None:
        super().__init__(info)
        self.model = model
        self.prefix_tokens = int(getattr(model, "num_prefix_tokens", 0))
        self.frozen()

    def forward(self, x: Tensor) -> Tensor:
        if self.info.features == "pooled":
            pooled: Tensor = self.model(x)
            return pooled.flatten(1)
        if self.info.features == "class_token":
            return _unpooled(self.model, x)[:, 0]
        return self.token_features(x).mean(dim=1)

    def token_features(self, x: Tensor) -> Tensor:
        return _as_tokens(_unpooled(self.model, x), self.info.token_size, self.prefix_tokens)

    def blocks(self) -> list[nn.Module]:
        return blocks_of(self.model)


def _unpooled(model: nn.Module, x: Tensor) -> Tensor:
    """What a network of timm computes before pooling.  (B, 3, H, W) -> (B, T, W), (B, W, H, H) or (B, H, H, W)"""
    found: Tensor = model.forward_features(x)  # type: ignore[operator]  # which a Module need not have
    return found


def _as_tokens(found: Tensor, width: int | None, prefix: int) -> Tensor:
    """(B, T, W), (B, W, H, H) or (B, H, H, W) -> (B, P, W), without class and register tokens"""
    if found.ndim == 3:
        return found[:, prefix:]
    return found.flatten(2).transpose(1, 2) if found.shape[1] == width else found.flatten(1, 2)


def timm_source(name: str, folder: Path | None) -> TimmSource:
    """What `timm:ARCH@FILE` or a folder with timm's config.json means.

    Raises:
        CheckpointError, UsageError: if there is no such architecture, file or folder.
    """
    if folder is not None:
        said = read_settings(folder / CONFIG)
        cfg = said.get("pretrained_cfg") or {}
        architecture = str(said.get("architecture") or cfg.get("architecture") or "")
        return TimmSource(absolute(name), architecture, weights_in(folder), said | cfg, said.get("model_args") or {})
    architecture, _, file = name.removeprefix(PREFIX).partition("@")
    path = Path(file).expanduser()
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; give {PREFIX}ARCHITECTURE@FILE.")
    return TimmSource(f"{PREFIX}{architecture}@{path.absolute()}", architecture, path)


def hub_name_of(architecture: str) -> str:
    """The name on the Hugging Face hub of the weights that timm has for an architecture.

    Raises:
        UsageError: if timm does not know it, or has no weights for it.
    """
    timm = require("timm")
    known = architecture.partition(".")[0]
    if not timm.is_model(known):
        close = ", ".join(timm.list_models(f"*{known}*")[:_MOST_LISTED])
        also = f"; it has {printable(close, 200)}" if close else ""
        raise UsageError(f"timm {timm.__version__} has no architecture {printable(architecture, 60)!r}{also}.")
    cfg = timm.get_pretrained_cfg(architecture)
    if cfg is None or not cfg.hf_hub_id:
        raise UsageError(
            f"timm has no weights for {printable(architecture, 60)} on the hub; give {PREFIX}{known}@FILE with a file."
        )
    return str(cfg.hf_hub_id)


def resolve_timm(source: TimmSource, features: Features, image_size: int | None) -> EncoderInfo:
    """The facts of an encoder, from its architecture and the list of its weights.

    Raises:
        CheckpointError, UsageError: as `load_timm`.
    """
    with torch.device("meta"):
        return _described(source, _network(source, image_size), features, image_size)


def load_timm(source: TimmSource, features: Features, image_size: int | None) -> TimmEncoder:
    """Build the network and load its weights.

    Raises:
        CheckpointError: if the weights are damaged or belong to another architecture.
        UsageError: if timm does not know the architecture, or it has no such features.
    """
    model = _network(source, image_size)
    info = _described(source, model, features, image_size)
    _load(model, source)
    return TimmEncoder(info, model)


def _network(source: TimmSource, image_size: int | None) -> nn.Module:
    """The architecture without classifier; on the meta device where that is the default.

    Raises:
        CheckpointError, UsageError: if timm cannot build it.
    """
    timm = require("timm")
    shown = printable(source.architecture, 60)
    if not timm.is_model(source.architecture):
        close = ", ".join(timm.list_models(f"*{source.architecture.partition('.')[0]}*")[:_MOST_LISTED])
        raise UsageError(
            f"{source.name}: timm {timm.__version__} has no architecture {shown!r}"
            + (f"; it has {close}." if close else "; clip-train --list-encoders timm lists them.")
        )
    arguments = {name: value for name, value in source.arguments.items() if name not in _NOT_ARGUMENTS}
    arguments |= {"num_classes": 0, "pretrained": False}
    try:
        if image_size is not None:
            with suppress(TypeError):  # a convolutional network takes images of any size, and has no such argument
                return _module(timm.create_model(source.architecture, **(arguments | {"img_size": image_size})))
        return _module(timm.create_model(source.architecture, **arguments))
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise CheckpointError(f"{source.name}: timm cannot build {shown} ({printable(str(error), 120)}).") from None


def _module(model: Any) -> nn.Module:
    built: nn.Module = model.eval()
    return built


def _described(source: TimmSource, model: nn.Module, features: Features, image_size: int | None) -> EncoderInfo:
    """The facts of a network, with sizes measured on one black image."""
    cfg: Mapping[str, Any] = source.settings or getattr(model, "pretrained_cfg", {})
    cfg = {key: value for key, value in {**getattr(model, "pretrained_cfg", {}), **cfg}.items() if value is not None}
    prepared = timm_preprocessing(source.name, cfg, image_size)
    device = next(model.parameters()).device
    black = torch.zeros(1, 3, prepared.image_size, prepared.image_size, device=device)
    try:
        with torch.no_grad():
            pooled, tokens = model(black), _unpooled(model, black)
    except (AssertionError, RuntimeError) as error:
        raise UsageError(
            f"{source.name} takes no images of {prepared.image_size} pixels ({printable(str(error), 100)}); "
            "give another --encoder-image-size."
        ) from None
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    width = int(getattr(model, "num_features", 0))
    has_tokens = isinstance(tokens, Tensor) and tokens.ndim in (3, 4) and width in (tokens.shape[1], tokens.shape[-1])
    if features == "patches" and not has_tokens:
        raise UsageError(f"{source.name} has no patch features; use its pooled ones.")
    if features == "class_token" and (not prefix or getattr(model, "cls_token", None) is None):
        raise UsageError(f"{source.name} has no class token; use its pooled features.")
    facts = {"features": features, "architecture": source.architecture, "arguments": dict(source.arguments)}
    return EncoderInfo(
        side="image",
        source="timm",
        name=source.name,
        architecture=f"timm {printable(source.architecture, 60)}",
        identity=identity_of(open_weights(source.weights).files, facts | {"images": prepared.model_dump(mode="json")}),
        parameters=parameter_count(model),
        licence=licence_of(source.weights.parent, dict(cfg)),
        feature_size=int(pooled.flatten(1).shape[1]) if features == "pooled" else width,
        features=features,
        tokens=has_tokens,
        token_size=width if has_tokens else None,
        preprocessing=prepared,
        notes=() if source.settings else (f"preprocessing is timm's for {printable(source.architecture, 60)}",),
    )


def _load(model: nn.Module, source: TimmSource) -> None:
    """Load the weights; the classifier's are left out, and any others must fit.

    Raises:
        CheckpointError: if names or shapes differ.
    """
    file = open_weights(source.weights)
    weights = {name.removeprefix("module."): stored.read() for name, stored in file.tensors.items()}
    found = _fitting(model, weights)
    expected = model.state_dict()
    heads = tuple(f"{name}." for name in _classifiers(model, source))
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(name for name in found.keys() - expected.keys() if not name.startswith(heads))
    wrong = sorted(name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape)
    if missing or extra or wrong:
        listed = "; ".join(
            f"{what} {printable(', '.join(names[:3]), 120)}"
            for what, names in (("missing", missing), ("unexpected", extra), ("of another shape", wrong))
            if names
        )
        raise CheckpointError(
            f"{source.weights} are not the weights of timm's {printable(source.architecture, 60)}: {listed}."
        )
    bad = next((name for name in expected if not torch.isfinite(found[name]).all()), None)
    if bad is not None:
        raise CheckpointError(f"{source.weights} has values that are not finite in {printable(bad, 80)}.")
    model.load_state_dict({name: found[name] for name in expected}, strict=True)


def _fitting(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in timm's names and sizes: its own converters read the original releases, and resize positions."""
    expected = model.state_dict()
    if all(name in weights and weights[name].shape == value.shape for name, value in expected.items()):
        return weights
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return weights
    try:
        return dict(convert(dict(weights), model))
    except Exception:  # a converter of timm on tensors that are not its own fails in any way; then names are compared
        return weights


def _classifiers(model: nn.Module, source: TimmSource) -> tuple[str, ...]:
    cfg = {**getattr(model, "pretrained_cfg", {}), **source.settings}
    named = cfg.get("classifier") or ()
    return (*((named,) if isinstance(named, str) else named), "head", "fc", "classifier", "head_dist")
