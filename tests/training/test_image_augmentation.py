"""Random crops and patch dropout: true to the image, the same for any number of ranks."""

import pytest
import torch

from clip_core.model.clip import CLIP
from clip_core.training.image_augmentation import draw_kept_patches, random_crop
from clip_core.training.ranks import Rank
from tests.training.tiny import tiny_config


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_patch_dropout_uses_some_patches_of_each_image_and_with_all_of_them_changes_nothing() -> None:
    kept = draw_kept_patches(5, 16, 0.5, seeded())
    assert kept.shape == (5, 8)
    assert all(len(set(row)) == 8 and row == sorted(row) and max(row) < 16 for row in kept.tolist())
    assert len({tuple(row) for row in kept.tolist()}) == 5
    for class_token in (False, True):
        model = CLIP(tiny_config(class_token=class_token)).eval()
        pixel_values = torch.randn(5, 3, 32, 32)
        whole = model.encode_image(pixel_values)
        torch.testing.assert_close(model.encode_image(pixel_values, torch.arange(16).expand(5, -1)), whole)
        changed = pixel_values.clone()
        changed[:, :, :8, :8] = 0  # the first patch
        without_it = torch.arange(1, 16).expand(5, -1)
        torch.testing.assert_close(
            model.encode_image(changed, without_it), model.encode_image(pixel_values, without_it)
        )
        assert not torch.allclose(model.encode_image(changed), whole)


@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_draw_what_one_process_draws(size: int) -> None:
    images = torch.rand(8, 3, 16, 16)
    ranks = [Rank(number, size) for number in range(size)]
    crops = [random_crop(images[rank.part(8)], seeded(), rank) for rank in ranks]
    torch.testing.assert_close(torch.cat(crops), random_crop(images, seeded()))
    kept = [draw_kept_patches(8 // size, 16, 0.5, seeded(), rank) for rank in ranks]
    assert torch.equal(torch.cat(kept), draw_kept_patches(8, 16, 0.5, seeded()))


def test_a_crop_is_most_of_the_image_at_any_place() -> None:
    ramp = torch.arange(64.0).expand(200, 1, 64, 64)  # each pixel is its column
    crops = random_crop(ramp, seeded())
    left, right = crops[:, 0, 0, 0], crops[:, 0, 0, -1]
    share = (right - left) / 63
    assert ((share > 0.79) & (share < 1.001)).all()
    assert share.std() > 0.03
    assert left.min() < 1
    assert left.max() > 8
