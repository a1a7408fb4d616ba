"""Parameter counts and FLOPs of a network, measured on the built towers."""

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clip_core.model.clip import CLIP
from clip_core.model.projection import ExternalEncoder
from clip_core.network import ClipConfig


class Size(NamedTuple):
    """Parameters of each tower, and floating-point operations for one image and one caption of full length."""

    image_parameters: int
    text_parameters: int
    image_flops: int
    text_flops: int


def parameters(module: nn.Module) -> int:
    """The number of parameters, those of frozen external encoders included."""
    frozen = (
        part.config.encoder.parameters
        for part in module.modules()
        if isinstance(part, ExternalEncoder) and part.unfrozen is None
    )
    return sum(p.numel() for p in module.parameters()) + sum(frozen)


def measure(config: ClipConfig) -> Size:
    """Count on the meta device: nothing is allocated. A multiply-add is two FLOPs."""
    with torch.device("meta"):
        model = CLIP(config)
        side = config.image.image_size
        image = torch.empty(1, 3, side, side)
        caption = torch.empty(1, config.text.context_length, dtype=torch.long)
        flops = []
        for tower, example in ((model.image, image), (model.text, caption)):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                tower(example)
            flops.append(counter.get_total_flops())
    return Size(parameters(model.image), parameters(model.text), flops[0], flops[1])
