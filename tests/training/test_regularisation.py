"""Terms that keep the geometry of an embedding, against the same by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from clip_core.training.regularisation import consistency_loss, structure_loss


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def by_hand(features: torch.Tensor, embeds: torch.Tensor) -> float:
    def neighbours(x: torch.Tensor) -> list[list[float]]:
        x = F.normalize(x - x.mean(0), dim=1)
        scores = [[math.exp(20 * float(a @ b)) if i != j else 1e-300 for j, b in enumerate(x)] for i, a in enumerate(x)]
        return [[value / sum(row) for value in row] for row in scores]

    total = 0.0
    for p, q in zip(neighbours(features), neighbours(embeds), strict=True):
        for a, b in zip(p, q, strict=True):
            m = (a + b) / 2
            total += 0.5 * (a * math.log(a / m) + b * math.log(b / m))
    return total / len(features)


def test_the_structure_loss_is_the_one_by_hand() -> None:
    features, embeds = rows(7, 5), rows(7, 4, seed=1)
    assert float(structure_loss(features, embeds)) == pytest.approx(by_hand(features, embeds), rel=1e-4)


def test_a_rotation_and_a_shift_of_the_features_keep_their_structure() -> None:
    features = rows(9, 6)
    rotation = torch.linalg.qr(rows(6, 6, seed=2)).Q
    assert float(structure_loss(features, 3 * features @ rotation)) == pytest.approx(0.0, abs=1e-5)
    assert float(structure_loss(features, rows(9, 6, seed=3))) > 0.05


def test_patches_count_as_their_mean() -> None:
    patches, embeds = rows(24, 5).reshape(8, 3, 5), rows(8, 4, seed=1)
    assert torch.equal(structure_loss(patches, embeds), structure_loss(patches.mean(dim=1), embeds))


def test_consistency_is_zero_for_equal_sides_and_the_sum_of_both_terms_else() -> None:
    image, text = F.normalize(rows(6, 4), dim=1), F.normalize(rows(6, 4, seed=1), dim=1)
    assert float(consistency_loss(image, image)) == pytest.approx(0.0, abs=1e-6)
    across = image @ text.T
    expected = ((across - across.T) ** 2).mean() + ((image @ image.T - text @ text.T) ** 2).mean()
    assert float(consistency_loss(image, text)) == pytest.approx(6 * float(expected), rel=1e-5)
