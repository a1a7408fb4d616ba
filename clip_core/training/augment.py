"""Images on the device: from uint8 to normalised floats, random crops that keep captions true, patches left out.

Shapes: B images, S side.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_core.network import Preprocessing

_SMALLEST_CROP = 0.8  # share of the side


def to_pixel_values(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, S, S), normalised"""
    mean = torch.tensor(preprocessing.mean, device=images.device)
    std = torch.tensor(preprocessing.std, device=images.device)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


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


def kept_patches(images: int, patches: int, dropout: float, generator: torch.Generator) -> Tensor:
    """Which patches of each image a step looks at, drawn anew for each (Li et al. 2023, "Scaling Language-Image
    Pre-training via Masking").  -> int64 (B, K), K = the rest of `patches`, at least one; in their order
    """
    count = max(round(patches * (1 - dropout)), 1)
    return torch.rand(images, patches, generator=generator).argsort(dim=1)[:, :count].sort(dim=1).values
