"""Which weights of a network that already knows something may move."""

from torch import nn

from clip_core.config import LossName, TuneConfig
from clip_core.model.clip import CLIP
from clip_core.model.image_encoder import ImageEncoder
from clip_core.model.text_encoder import TextEncoder
from clip_core.training.lora import add_adapters, is_adapter

TEMPERATURE = "log_logit_scale"


def choose_trainable(model: CLIP, tune: TuneConfig, loss: LossName = "softmax") -> None:
    """Lock a tower, open its last blocks again, add adapters: as `tune` says.

    A locked tower stays as it is (Zhai et al. 2022, "LiT: zero-shot transfer with locked-image text tuning"). With
    adapters, nothing but they and the temperature moves, and they go where a block would have been trained. The bias of
    the logits moves with the sigmoid loss, and with no other, as the softmax loss does not feel it.
    """
    if tune.lock != "none":
        _lock(model.image if tune.lock == "image" else model.text, tune.unlock_last)
    if tune.lora is not None:
        blocks = [block for tower in (model.image, model.text) for block in tower.blocks if is_trained(block)]
        model.requires_grad_(False)
        add_adapters(blocks, tune.lora, tune.lora_alpha)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_adapter(name) or name == TEMPERATURE)
    if model.logit_bias is not None:
        model.logit_bias.requires_grad_(loss == "sigmoid")


def _lock(tower: ImageEncoder | TextEncoder, unlock_last: int) -> None:
    tower.requires_grad_(False)
    if unlock_last:
        last = tower.norm_post if isinstance(tower, ImageEncoder) else tower.norm_final
        for part in (*tower.blocks[-unlock_last:], last, tower.projection):
            part.requires_grad_(True)


def is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def trained_parameters(module: nn.Module) -> int:
    """How many numbers move."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
