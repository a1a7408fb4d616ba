"""What the towers that other libraries build have in common; see timm_image.py and transformers_text.py."""

from typing import Self

from torch import nn

from clip_core.model.encoders.base import blocks_of


class LibraryTower(nn.Module):
    """A tower of another library, whose weights are trained and saved like any other.

    It stays in evaluation mode: without dropout and stochastic depth, and with the batch statistics that it was
    pretrained with, which small batches would spoil.
    """

    def network(self) -> nn.Module:
        """The network of the library, without the projection behind it."""
        raise NotImplementedError

    @property
    def blocks(self) -> list[nn.Module]:
        """Its Transformer blocks or stages, first to last."""
        return blocks_of(self.network())

    def layers_above(self) -> dict[str, int]:
        """By the name of each parameter: 0 after the blocks, 1 in the last block, most before the first."""
        blocks = self.blocks
        inside = {id(p): len(blocks) - number for number, block in enumerate(blocks) for p in block.parameters()}
        found: dict[str, int] = {}
        otherwise = len(blocks) + 1
        for name, parameter in self.named_parameters():  # in the order in which they are used
            if id(parameter) in inside:
                otherwise = 0
            found[name] = inside.get(id(parameter), otherwise)
        return found

    def train(self, mode: bool = True) -> Self:
        return super().train(False)
