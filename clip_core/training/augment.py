"""Pictures on the device: from uint8 to normalised floats, and random crops that keep captions true.

Shapes: B pictures, S side.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_core.network import Preprocessing

_SMALLEST_CROP = 0.8  # share of the side


def to_pixel_values(pictures: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, S, S), normalised"""
    mean = torch.tensor(preprocessing.mean, device=pictures.device)
    std = torch.tensor(preprocessing.std, device=pictures.device)
    return ((pictures.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def random_crop(pixel_values: Tensor, generator: torch.Generator) -> Tensor:
    """A crop of 80 to 100 % of the side at a random place, scaled back. No flip, no colour: captions stay true.

    `generator` lives on the CPU, so that the same seed gives the same crops on every device.  (B, 3, S, S) -> same
    """
    batch = len(pixel_values)
    scale = _SMALLEST_CROP + (1 - _SMALLEST_CROP) * torch.rand(batch, generator=generator)
    shift = (2 * torch.rand(batch, 2, generator=generator) - 1) * (1 - scale)[:, None]
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    theta = theta.to(pixel_values.device, non_blocking=True)
    grid = F.affine_grid(theta, list(pixel_values.shape), align_corners=False)
    return F.grid_sample(pixel_values, grid, mode="bilinear", padding_mode="border", align_corners=False)
