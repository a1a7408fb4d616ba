"""Less memory for activations: each block keeps its input alone, and computes again in the backward pass.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from clip_core.model.clip import CLIP


def checkpoint_activations(network: CLIP, *, draws: bool) -> int:
    """Let every block of both towers recompute its activations; returns the number of blocks.

    Args:
        network: that forward passes call. Its parameters and their names stay as they are.
        draws: blocks draw random numbers (dropout), which must be drawn again as they were.
    """
    count = 0
    for block in blocks_of(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=draws)
        count += 1
    return count


def blocks_of(network: CLIP) -> Iterator[nn.Module]:
    """The Transformer blocks of both towers; none of an encoder whose features are computed beforehand."""
    for tower in (network.image, network.text):
        yield from tower.blocks
