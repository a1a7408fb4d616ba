"""Position embeddings for another image size.

Shapes: T positions (patches, behind a class token if there is one), W width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def interpolate_positions(positions: Tensor, grid: int, *, class_token: bool) -> Tensor:
    """Stretch or shrink the grid of patch positions; the class token's stays.  (T, W) -> (T', W)

    Args:
        grid: patches along the new side.
    Source: bicubic with antialiasing, as open_clip resizes positions when it loads weights.
    """
    first, patches = positions[: int(class_token)], positions[int(class_token) :]
    old = math.isqrt(len(patches))
    if old == grid:
        return positions
    square = patches.reshape(old, old, -1).permute(2, 0, 1)[None]  # (1, W, old, old)
    resized = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, resized[0].permute(1, 2, 0).flatten(0, 1)])
