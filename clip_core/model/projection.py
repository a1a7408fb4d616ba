"""Projection heads: from the features of a frozen encoder to the shared embedding.

Shapes: B inputs, P patches, F features, H hidden, D embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.model.encoders.base import FrozenEncoder
from clip_core.network import ExternalTower, Head


class AttentionPool(nn.Module):
    """Patches pooled by their softmax similarity to a learned query, one query for each of some groups of features.

    (B, P, F) -> (B, F)
    """

    def __init__(self, features: int, groups: int = 8) -> None:
        super().__init__()
        self.groups = groups if features % groups == 0 else 1
        self.norm = nn.LayerNorm(features)
        self.scores = nn.Linear(features, self.groups)
        nn.init.zeros_(self.scores.weight)  # the mean at first
        nn.init.zeros_(self.scores.bias)

    def forward(self, patches: Tensor) -> Tensor:
        patches = patches.to(self.scores.weight.dtype)
        weights = self.scores(self.norm(patches)).softmax(dim=1)  # (B, P, groups)
        split = patches.reshape(*patches.shape[:2], self.groups, -1)  # (B, P, groups, F / groups)
        pooled: Tensor = (weights[..., None] * split).sum(dim=1).flatten(1)
        return pooled


class ProjectionHead(nn.Module):
    """Features to an embedding that is not normalised yet.  (B, F) or (B, P, F) -> (B, D)

    `linear`: one layer. `mlp`: two with a GELU between. `residual`: both added, where the MLP begins at zero.
    Features are L2-normalised, or not, then centred and scaled by the statistics of the training features, which
    `fit_statistics` sets and checkpoints hold.
    """

    def __init__(self, features: int, config: Head, embed_dim: int) -> None:
        super().__init__()
        self.normalise = config.normalise
        self.pool = AttentionPool(features) if config.pool else None
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(()))
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(features, embed_dim) if config.kind != "mlp" else None
        self.mlp = None
        if config.kind != "linear":
            last = nn.Linear(config.hidden, embed_dim)
            if config.kind == "residual":
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
            self.mlp = nn.Sequential(
                nn.LayerNorm(features), nn.Linear(features, config.hidden), nn.GELU(), nn.Dropout(config.dropout), last
            )

    def forward(self, features: Tensor) -> Tensor:
        x = self.prepare(features)
        if self.mlp is None:
            assert self.linear is not None
            out: Tensor = self.linear(self.dropout(x))
            return out
        out = self.mlp(x)
        return out if self.linear is None else out + self.linear(x)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; statistics are float32 always."""
        return next(self.parameters()).dtype

    def prepare(self, features: Tensor) -> Tensor:
        """Pooled, normalised, centred and scaled.  -> (B, F)"""
        x = features.float() if self.pool is None else self.pool(features).float()
        if self.normalise:
            x = F.normalize(x, dim=-1)
        return ((x - self.mean) * self.scale).to(self.dtype)

    @torch.no_grad()
    def fit_statistics(self, features: Tensor) -> None:
        """Centre and scale by the mean and the overall standard deviation of these features.  (N, F) or (N, P, F)"""
        self.mean.zero_()
        self.scale.fill_(1.0)
        x = self.prepare(features)
        self.mean.copy_(x.mean(dim=0))
        self.scale.copy_(1 / (x - self.mean).std().clamp(min=1e-6))


class ExternalEncoder(nn.Module):
    """A frozen encoder and its projection head, as one tower of a CLIP.

    forward: what the encoder takes, or its features, which training computes once -> (B, D) float32, L2-normalised.
    Pixels are float (B, 3, S, S) and token ids int64; features are float (B, F) or (B, P, F).

    A frozen encoder is not part of the state dict: its weights are those of its source, whose identity the
    configuration holds. With `unfrozen` blocks it is, whole.
    """

    def __init__(self, config: ExternalTower, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.head = ProjectionHead(config.head_input, config.head, embed_dim)
        self.unfrozen: FrozenEncoder | None = None
        self._held = _Held()

    @property
    def encoder(self) -> FrozenEncoder | None:
        return self._held.encoder if self.unfrozen is None else self.unfrozen

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of the encoder, where they are part of the network; else there are none to fine-tune."""
        return [] if self.unfrozen is None else self.unfrozen.blocks()

    def attach(self, encoder: FrozenEncoder) -> None:
        """Use this encoder for pixels or token ids."""
        if self.config.unfrozen:
            self.unfrozen = encoder
        else:
            self._held.encoder = encoder

    def forward(self, x: Tensor, kept_patches: Tensor | None = None) -> Tensor:
        return F.normalize(self.head(self.features(x)).float(), dim=-1)

    def features(self, x: Tensor) -> Tensor:
        """What the head takes: x itself, where it holds features.  -> (B, F) or (B, P, F)"""
        if x.is_floating_point() and x.ndim < 4:
            return x
        encoder = self.encoder
        if encoder is None:
            raise RuntimeError("the encoder of this tower is not attached")
        if not self.config.unfrozen:
            encoder.to(x.device)
        out: Tensor = encoder.token_features(x) if self.config.head.pool else encoder(x)
        return out


class _Held:
    """Holds an encoder outside of the module tree; copies of the network share it."""

    def __init__(self) -> None:
        self.encoder: FrozenEncoder | None = None

    def __deepcopy__(self, memo: object) -> "_Held":
        return self
