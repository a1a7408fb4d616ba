"""Image encoders of transformers: ViT, DeiT, DINOv2, DINOv3, ConvNeXt, and the vision towers of SigLIP and CLIP."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clip_core.errors import UsageError
from clip_core.model.encoders.base import EncoderInfo, Features, FrozenEncoder, blocks_of, parameter_count
from clip_core.model.encoders.files import CONFIG, absolute, identity_of, licence_of, read_settings, weights_in
from clip_core.model.encoders.preprocessing import named_preprocessing, preprocessing_beside
from clip_core.model.encoders.transformers_models import build, build_empty, without_pooler
from clip_core.model.weight_files import open_weights
from clip_core.network import Preprocessing
from clip_core.text import printable


@dataclass(frozen=True)
class _Kind:
    """Where the features of a family are.

    `pooler`: pooled features are `pooler_output`, else the first token. `prefix`: class tokens before the patches,
    beside the registers. `resizable`: takes `interpolate_pos_encoding`. `loader`: the class for a checkpoint of two
    towers.
    """

    pooler: bool = True
    prefix: int = 1
    resizable: bool = False
    loader: str = "AutoModel"


IMAGE_MODELS = {
    "vit": _Kind(pooler=False, resizable=True),
    "deit": _Kind(pooler=False, prefix=2, resizable=True),
    "dinov2": _Kind(),
    "dinov2_with_registers": _Kind(),
    "dinov3_vit": _Kind(),
    "dinov3_convnext": _Kind(),
    "convnext": _Kind(prefix=0),
    "convnextv2": _Kind(prefix=0),
    "siglip_vision_model": _Kind(prefix=0, resizable=True),
    "siglip": _Kind(prefix=0, resizable=True, loader="SiglipVisionModel"),
    "clip_vision_model": _Kind(resizable=True),
}


class HuggingFaceImageEncoder(FrozenEncoder):
    """A vision model of transformers."""

    def __init__(self, info: EncoderInfo, model: nn.Module, kind: _Kind, prefix: int, resized: bool) -> None:
        super().__init__(info)
        self.model = model
        self.kind, self.prefix = kind, prefix
        self._arguments = {"interpolate_pos_encoding": True} if resized and kind.resizable else {}
        self.frozen()

    def forward(self, x: Tensor) -> Tensor:
        if self.info.features == "patches":
            return self.token_features(x).mean(dim=1)
        found = self.model(pixel_values=x, **self._arguments)
        first = self.info.features == "class_token" or not self.kind.pooler
        pooled: Tensor = found.last_hidden_state[:, 0] if first else found.pooler_output.flatten(1)
        return pooled

    def token_features(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixel_values=x, **self._arguments).last_hidden_state
        return tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens[:, self.prefix :]

    def blocks(self) -> list[nn.Module]:
        return blocks_of(self.model)


def resolve_image(
    name: str, folder: Path, features: Features, image_size: int | None, preprocessing: Preprocessing | str | None
) -> EncoderInfo:
    """The facts of a Hugging Face image encoder, from its configuration and the list of its weights.

    Raises:
        CheckpointError, UsageError: as `load_image`.
    """
    kind, settings = _kind(folder)
    model = build_empty(folder, kind.loader, "vision_config" if kind.loader != "AutoModel" else None)
    return _described(name, folder, _used(model, kind), settings, features, image_size, preprocessing)


def load_image(
    name: str, folder: Path, features: Features, image_size: int | None, preprocessing: Preprocessing | str | None
) -> HuggingFaceImageEncoder:
    """Load a Hugging Face image encoder from a folder.

    Raises:
        CheckpointError: if it is damaged, incomplete, of a kind that is not supported, or asks for code to be run.
        UsageError: if it has no such features, or takes no images of that size.
    """
    kind, settings = _kind(folder)
    model = build(folder, weights_in(folder), kind.loader)
    info = _described(name, folder, _used(model, kind), settings, features, image_size, preprocessing)
    vision = settings.get("vision_config") or settings
    resized = info.image_size != vision.get("image_size", 224)
    return HuggingFaceImageEncoder(info, model, kind, _prefix(kind, vision), resized)


def _used(model: nn.Module, kind: _Kind) -> nn.Module:
    return model if kind.pooler else without_pooler(model)


def _kind(folder: Path) -> tuple[_Kind, dict[str, Any]]:
    settings = read_settings(folder / CONFIG)
    return IMAGE_MODELS[str(settings["model_type"])], settings


def _prefix(kind: _Kind, vision: dict[str, Any]) -> int:
    registers = vision.get("num_register_tokens", 0) if kind.prefix else 0
    return kind.prefix + int(registers)


def _described(
    name: str,
    folder: Path,
    model: nn.Module,
    settings: dict[str, Any],
    features: Features,
    image_size: int | None,
    preprocessing: Preprocessing | str | None,
) -> EncoderInfo:
    kind = IMAGE_MODELS[str(settings["model_type"])]
    vision = settings.get("vision_config") or settings
    own_size = vision.get("image_size")
    if isinstance(preprocessing, str):
        prepared = named_preprocessing(preprocessing, image_size or (own_size if isinstance(own_size, int) else 224))
    else:
        prepared = preprocessing or preprocessing_beside(folder, image_size)
    side, patch = prepared.image_size, vision.get("patch_size")
    if isinstance(patch, int) and side < patch:
        raise UsageError(
            f"{folder} has patches of {patch} pixels, images are of {side}; give a larger --encoder-image-size."
        )
    if features == "class_token" and not kind.prefix:
        raise UsageError(f"{folder} has no class token; use its pooled features.")
    width = int((vision.get("hidden_sizes") or [vision.get("hidden_size", 768)])[-1])
    facts = {"features": features, "images": prepared.model_dump(mode="json"), "settings": settings}
    return EncoderInfo(
        side="image",
        source="hugging_face",
        name=absolute(name),
        architecture=f"{printable(str(settings['model_type']), 40)} ({type(model).__name__})",
        identity=identity_of(open_weights(weights_in(folder)).files, facts),
        parameters=parameter_count(model),
        licence=licence_of(folder, settings),
        feature_size=width,
        features=features,
        tokens=True,
        token_size=width,
        preprocessing=prepared,
    )
