"""Projection heads and the tower they make of a frozen encoder."""

import copy

import pytest
import torch
from torch.nn import functional as F

from clip_core.model.encoders.base import FrozenEncoder
from clip_core.model.projection import ExternalEncoder, ProjectionHead
from clip_core.network import EncoderInfo, ExternalTower, Head, Preprocessing

INFO = EncoderInfo(
    side="image", source="onnx", name="x", architecture="x", identity="0", parameters=1, feature_size=6, tokens=True,
    token_size=6, preprocessing=Preprocessing(image_size=8),
)  # fmt: skip


class Pooled(FrozenEncoder):
    """The mean of each channel, twice."""

    def __init__(self) -> None:
        super().__init__(INFO)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)])
        self.frozen()

    def token_features(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2).repeat(1, 1, 2)  # (B, P, 6)
        return self.layers[1](self.layers[0](tokens))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.token_features(x).mean(dim=1)

    def blocks(self) -> list[torch.nn.Module]:
        return list(self.layers)


def tower(**head: object) -> ExternalEncoder:
    torch.manual_seed(0)
    built = ExternalEncoder(ExternalTower(encoder=INFO, head=Head(hidden=8, **head)), 4)
    built.attach(Pooled())
    return built.eval()


@pytest.mark.parametrize("kind", ["linear", "mlp", "residual"])
@pytest.mark.parametrize("pool", [False, True])
def test_features_give_the_embedding_of_the_images_they_are_of(kind: str, pool: bool) -> None:
    built, images = tower(kind=kind, pool=pool), torch.randn(5, 3, 8, 8)
    assert built.encoder is not None
    features = built.encoder.token_features(images) if pool else built.encoder(images)
    assert torch.equal(built(features), built(images))
    assert torch.allclose(built(images).norm(dim=1), torch.ones(5), atol=1e-6)


def test_a_residual_head_begins_as_its_linear_part() -> None:
    head = ProjectionHead(6, Head(hidden=8), 4).eval()
    features = torch.randn(5, 6)
    assert head.linear is not None
    assert torch.equal(head(features), head.linear(F.normalize(features, dim=1)))


def test_attention_pooling_begins_as_the_mean() -> None:
    head = ProjectionHead(6, Head(kind="linear", pool=True, normalise=False), 4).eval()
    patches = torch.randn(5, 7, 6)
    assert head.linear is not None
    assert torch.allclose(head(patches), head.linear(patches.mean(dim=1)), atol=1e-6)


def test_statistics_centre_and_scale_the_training_features() -> None:
    head, features = ProjectionHead(6, Head(), 4), 5 + 3 * torch.randn(200, 6)
    head.fit_statistics(features)
    prepared = head.prepare(features)
    assert torch.allclose(prepared.mean(dim=0), torch.zeros(6), atol=1e-4)
    assert float(prepared.std()) == pytest.approx(1.0, abs=0.02)
    assert {"mean", "scale"} <= head.state_dict().keys()


def test_a_frozen_encoder_is_neither_stored_nor_copied_nor_trained() -> None:
    built = tower()
    assert all(name.startswith("head.") for name in built.state_dict())
    assert copy.deepcopy(built).encoder is built.encoder
    built.train()
    assert built.encoder is not None
    assert not built.encoder.training
    assert {name.partition(".")[0] for name, weights in built.named_parameters() if weights.requires_grad} == {"head"}


def test_an_unfrozen_encoder_is_part_of_the_network() -> None:
    built = ExternalEncoder(ExternalTower(encoder=INFO, unfrozen=1), 4)
    built.attach(Pooled())
    assert any(name.startswith("unfrozen.layers.1.") for name in built.state_dict())
    assert copy.deepcopy(built).encoder is not built.encoder
    assert len(built.blocks) == 2


def test_without_its_encoder_a_tower_takes_features_alone() -> None:
    built = ExternalEncoder(ExternalTower(encoder=INFO), 4)
    assert built(torch.randn(2, 6)).shape == (2, 4)
    with pytest.raises(RuntimeError, match="not attached"):
        built(torch.randn(2, 3, 8, 8))
