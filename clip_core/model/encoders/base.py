"""What a pretrained encoder of any library is to this project: features, their size, how inputs are prepared.

Shapes: B images, C captions, S image side, T tokens, P patches, F features.
"""

from typing import Self

import torch
from torch import Tensor, nn

from clip_core.data.tokenizer import Tokenizer
from clip_core.network import EncoderInfo, Features, Side, Source

__all__ = ["EncoderInfo", "Features", "FrozenEncoder", "Side", "Source", "blocks_of", "masked_pool", "parameter_count"]


class FrozenEncoder(nn.Module):
    """A pretrained encoder, always in evaluation mode, without trainable parameters until some are unfrozen.

    forward: image side, pixel_values float32 (B, 3, S, S) -> (B, F); text side, input_ids int64 (C, T) -> (C, F), where
    the attention mask is computed from the padding id, so that padding changes nothing.
    """

    def __init__(self, info: EncoderInfo, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.info = info
        self.tokenizer = tokenizer

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def token_features(self, x: Tensor) -> Tensor:
        """Patch features of images, where `info.tokens`.  (B, 3, S, S) -> (B, P, F)"""
        raise NotImplementedError(f"{self.info.architecture} has no patch features")

    def blocks(self) -> list[nn.Module]:
        """Its Transformer blocks or stages, first to last, to unfreeze the last ones; [] where that is impossible."""
        return []

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: dropout and running statistics of a pretrained encoder do not change here."""
        return super().train(False)

    def frozen(self) -> Self:
        """This encoder in evaluation mode and fp32, with no parameter trainable."""
        self.float().train(False)
        return self.requires_grad_(False)


def parameter_count(module: nn.Module) -> int:
    """The number of parameters; buffers do not count."""
    return sum(weights.numel() for weights in module.parameters())


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks or stages of a network: the entries of its largest list of modules, in order.

    A ResNet of timm has no such list; its stages are layer1 to layer4.
    """
    stages = [stage for number in range(1, 9) if (stage := getattr(module, f"layer{number}", None)) is not None]
    if len(stages) > 1 and all(isinstance(stage, nn.Module) for stage in stages):
        return stages
    lists = [
        part for part in module.modules()
        if isinstance(part, nn.ModuleList | nn.Sequential) and len(part) > 1 and part is not module
    ]  # fmt: skip
    largest = max(lists, key=parameter_count, default=None)
    return [] if largest is None or not parameter_count(largest) else list(largest)


def masked_pool(tokens: Tensor, mask: Tensor, how: str) -> Tensor:
    """Pool the tokens that are not padding.  (C, T, F), (C, T) bool -> (C, F)

    `how`: mean, cls (the first token), max, mean_sqrt (the sum by the root of the number of tokens), or last.
    """
    if how == "cls":
        return tokens[:, 0]
    weights = mask[..., None].to(tokens.dtype)  # (C, T, 1)
    if how == "max":
        return tokens.masked_fill(~mask[..., None], torch.finfo(tokens.dtype).min).amax(dim=1)
    if how == "last":
        position = torch.arange(tokens.shape[1], device=tokens.device)
        last = torch.where(mask, position, -1).amax(dim=1).clamp(min=0)
        return tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[2])).squeeze(1)
    count = weights.sum(dim=1).clamp(min=1e-9)
    total = (tokens * weights).sum(dim=1)
    return total / (count.sqrt() if how == "mean_sqrt" else count)
