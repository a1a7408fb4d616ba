"""Images on the device: normalisation, random crops for which captions remain correct, patch dropout.

Shapes: B images of all ranks, b of this rank, S side, P patches, K kept patches.

Random numbers are drawn on the CPU for the whole batch of all ranks: the same seed and step give each image the same
crop and patches on every device and for any number of processes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_core.network import Preprocessing
from clip_core.training.ranks import Rank

_SMALLEST_CROP = 0.8  # share of the side
_ALONE = Rank()


def to_pixel_values(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, S, S), normalised"""
    mean, std = (to_device(torch.tensor(values), images.device) for values in (preprocessing.mean, preprocessing.std))
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def network_input(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Images as pixel values; features of a frozen encoder, which are floats, as they are."""
    return images if images.is_floating_point() else to_pixel_values(images, preprocessing)


def random_crop(pixel_values: Tensor, generator: torch.Generator, rank: Rank = _ALONE) -> Tensor:
    """A crop of 80 to 100 % of the side at a random place, resized to the side. No flips, no colour changes.

    (b, 3, S, S) -> same
    """
    return crop(pixel_values, to_device(draw_crops(len(pixel_values), generator, rank), pixel_values.device))


def draw_crops(images: int, generator: torch.Generator, rank: Rank = _ALONE) -> Tensor:
    """The crop of each image of this rank, as the affine map of its coordinates.  -> (b, 2, 3) on the CPU"""
    batch = images * rank.size
    own = rank.part(batch)
    scale = (_SMALLEST_CROP + (1 - _SMALLEST_CROP) * torch.rand(batch, generator=generator))[own]
    shift = (2 * torch.rand(batch, 2, generator=generator) - 1)[own] * (1 - scale)[:, None]
    theta = torch.zeros(images, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    return theta


def crop(pixel_values: Tensor, crops: Tensor) -> Tensor:
    """Crops from `draw_crops`, resized to the side.  (b, 3, S, S), (b, 2, 3) -> (b, 3, S, S)"""
    grid = F.affine_grid(crops, list(pixel_values.shape), align_corners=False)
    return F.grid_sample(pixel_values, grid, mode="bilinear", padding_mode="border", align_corners=False)


def draw_kept_patches(
    images: int, patches: int, dropout: float, generator: torch.Generator, rank: Rank = _ALONE
) -> Tensor:
    """Patch dropout: the indices of the patches that are used, drawn for each image.

    Args:
        images: of this rank, b.
        dropout: share of the patches that is dropped; one patch always stays.
    Returns:
        int64 (b, K) on the CPU, each row ascending.
    Source: Li et al. 2023, "Scaling Language-Image Pre-training via Masking".
    """
    count = max(round(patches * (1 - dropout)), 1)
    drawn = torch.rand(images * rank.size, patches, generator=generator)[rank.part(images * rank.size)]
    return drawn.argsort(dim=1)[:, :count].sort(dim=1).values


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, without waiting for what the device is computing (from pinned memory)."""
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)
