"""clip-train with what a plain loop does about repeated captions, which is nothing: they are negatives of each other.

    python -m benchmarks.plain_recipe [clip-train flags ...]

Whatever else is plain can be said by flags; see `benchmarks.shapes`.
"""

import sys

import torch
from torch import Tensor

from clip_core.cli.train import main
from clip_core.training import train_step


def only_itself(image_ids: Tensor, *_ids: Tensor) -> Tensor:
    """In place of `matching_pairs`: a pair matches itself alone.  (B,), (B,) -> bool (B, B)"""
    return torch.eye(len(image_ids), dtype=torch.bool, device=image_ids.device)


if __name__ == "__main__":
    if not hasattr(train_step, "matching_pairs"):
        sys.exit("clip_core.training.train_step no longer calls matching_pairs; this script must follow it")
    train_step.matching_pairs = only_itself
    sys.exit(main())
