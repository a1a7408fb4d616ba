"""An image tower that timm builds, as open_clip's checkpoints have it below `visual.`.

Shapes: B images, S image side, F features, D embedding.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.errors import CheckpointError
from clip_core.model.encoders.files import require
from clip_core.model.library_tower import LibraryTower
from clip_core.network import TimmTower
from clip_core.text import printable

_MOST_LISTED = 5
_POOLS = ("abs_attn", "rot_attn")
FAILURES = (TypeError, ValueError, RuntimeError, AssertionError, KeyError, AttributeError, NotImplementedError)


class TimmImageEncoder(LibraryTower):
    """A network of timm, and the pooling and projection behind it, with open_clip's names (its TimmModel).

    forward: normalised pixel_values, float (B, 3, S, S) -> image_embeds, float32 (B, D), L2-normalised.

    Raises:
        MissingExtraError: if timm is not installed.
        CheckpointError: if the installed timm does not know the architecture, or cannot build it so.
    """

    trunk: nn.Module

    def __init__(self, config: TimmTower, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        timm = require("timm")
        name = config.architecture
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.partition('.')[0]}*")[:_MOST_LISTED])
            raise CheckpointError(
                f"the installed timm {timm.__version__} has no architecture {printable(name, 60)!r}"
                + (f"; it has {printable(close, 200)}." if close else "; another version may have it.")
            )
        try:
            self._build(timm, embed_dim)
        except FAILURES as error:
            cause = printable(str(error).strip().partition("\n")[0] or type(error).__name__, 120)
            raise CheckpointError(
                f"timm cannot build {printable(name, 60)} with {config.pooling or 'its own'} pooling ({cause})."
            ) from None
        self.eval()

    def _build(self, timm: Any, embed_dim: int) -> None:
        config = self.config
        separate = config.projection in ("linear", "mlp")
        pooled_here = config.pooling in _POOLS
        head: OrderedDict[str, nn.Module] = OrderedDict()
        if not separate and not pooled_here:
            classes = 0 if config.projection == "none" else embed_dim
            self.trunk = timm.create_model(
                config.architecture, num_classes=classes, global_pool=config.pooling, pretrained=False
            )
            self.head = nn.Sequential(head)
            return
        self.trunk = trunk = timm.create_model(config.architecture, pretrained=False)
        trunk.reset_classifier(0, **({"global_pool": "" if pooled_here else config.pooling} if config.pooling else {}))
        features = trunk.num_features
        if pooled_here:
            kind = timm.layers.AttentionPool2d if config.pooling == "abs_attn" else timm.layers.RotAttentionPool2d
            size = trunk.default_cfg.get("pool_size")
            if not size:
                raise ValueError("it has no feature map to pool")
            sized = {"feat_size": size} if config.pooling == "abs_attn" else {}
            head["pool"] = kind(features, out_features=embed_dim, **sized)
            features = embed_dim
        if config.projection == "linear":
            head["proj"] = nn.Linear(features, embed_dim, bias=config.projection_bias)
        elif config.projection == "mlp":
            head["mlp"] = timm.layers.Mlp(features, 2 * embed_dim, embed_dim, bias=(True, config.projection_bias))
        self.head = nn.Sequential(head)

    def network(self) -> nn.Module:
        return self.trunk

    def forward(self, pixel_values: Tensor, kept_patches: Tensor | None = None) -> Tensor:
        features = self.head(self.trunk(pixel_values))
        return F.normalize(features.float(), dim=-1)


def check_timm_tower(where: object, config: TimmTower, embed_dim: int) -> None:
    """Build the tower on the meta device, and see that it takes such images and gives such embeddings.

    Raises:
        CheckpointError: naming what does not fit.
        MissingExtraError: as `TimmImageEncoder`.
    """
    name = printable(config.architecture, 60)
    with torch.device("meta"), torch.no_grad():
        tower = TimmImageEncoder(config, embed_dim)
        try:
            shape = tuple(tower(torch.zeros(1, 3, config.image_size, config.image_size)).shape)
        except FAILURES as error:
            cause = printable(str(error).strip().partition("\n")[0] or type(error).__name__, 120)
            raise CheckpointError(
                f"{where} prepares images of {config.image_size} pixels, which {name} does not take ({cause})."
            ) from None
    if shape != (1, embed_dim):
        raise CheckpointError(
            f"{where} asks for embeddings of {embed_dim} numbers, and {name} with {config.pooling or 'its own'} "
            f"pooling and {config.projection or 'no'} projection gives {list(shape[1:])} for an image."
        )
