"""The presets: shapes of both towers by a name, and the network that they make of the configuration."""

from typing import Any, NamedTuple

from pydantic import ValidationError

from clip_core.config import ModelConfig, PresetName, explain
from clip_core.errors import UsageError
from clip_core.network import ClipConfig, ImageTower, Pooling, Preprocessing, Stem, TextTower

FEW_PAIRS = 50_000  # training pairs; smaller sets have a preset and defaults of their own
_HEAD_WIDTH = 64  # as in CLIP


class Shape(NamedTuple):
    width: int
    layers: int

    @property
    def heads(self) -> int:
        return self.width // _HEAD_WIDTH

    def changed(self, width: int | None, layers: int | None) -> "Shape":
        """With another width, or other layers; None leaves either as it is."""
        return Shape(width or self.width, layers or self.layers)


class Preset(NamedTuple):
    """Shapes of both towers.

    `patch_size`: None is the largest power of two with four patches a side, for a convolutional stem.
    `published`: class token, pre-norm and no patch bias, as in OpenAI's image tower.
    """

    embed_dim: int
    image: Shape
    text: Shape
    image_size: int = 64
    patch_size: int | None = 8
    stem: Stem = Stem.PATCH
    published: bool = False

    def patch_at(self, image_size: int) -> int:
        return self.patch_size or 1 << (image_size // 4).bit_length() - 1


def _own(width: int, layers: int) -> Preset:
    return Preset(width, Shape(width, layers), Shape(width, layers))


def _published(embed_dim: int, patch_size: int, image: Shape, text: Shape) -> Preset:
    return Preset(embed_dim, image, text, 224, patch_size, published=True)


PRESETS: dict[str, Preset] = {
    "nano": Preset(256, Shape(256, 3), Shape(256, 1), patch_size=None, stem=Stem.CONV),
    "tiny": _own(256, 6),
    "small": _own(384, 8),
    "base": _own(512, 12),
    "large": _own(768, 24),
    "ViT-B-32": _published(512, 32, Shape(768, 12), Shape(512, 12)),
    "ViT-B-16": _published(512, 16, Shape(768, 12), Shape(512, 12)),
    "ViT-L-14": _published(768, 14, Shape(1024, 24), Shape(768, 12)),
}


def preset_for(model: ModelConfig, pairs: int) -> PresetName:
    """The requested preset, or the default for a number of training pairs.

    Small sets train best with a convolutional stem, few layers and one text layer (docs/log.md).
    """
    return model.model_size or ("tiny" if pairs >= FEW_PAIRS else "nano")


def preprocessing(model: ModelConfig) -> Preprocessing:
    """Preprocessing of a network trained from scratch; the presets chosen automatically share 64 px."""
    return Preprocessing(image_size=model.image_size or PRESETS[model.model_size or "tiny"].image_size)


def architecture(
    model: ModelConfig, *, vocab_size: int, end_token: int, context_length: int, pairs: int = 0
) -> ClipConfig:
    """The network of a preset, for a tokenizer's vocabulary.

    Args:
        pairs: number of training pairs, which decides the default preset.
    Raises:
        UsageError: if the image size is not a multiple of the patch size.
    """
    preset = PRESETS[preset_for(model, pairs)]
    prepared = preprocessing(model)
    patch_size = model.patch_size or preset.patch_at(prepared.image_size)
    if prepared.image_size % patch_size:
        raise UsageError(f"--image-size {prepared.image_size} is not a multiple of --patch-size {patch_size}.")
    traits: dict[str, Any] = (
        {"pooling": Pooling.CLASS_TOKEN, "pre_norm": True, "patch_bias": False} if preset.published else {}
    )
    image, text = (shape.changed(model.width, model.layers) for shape in (preset.image, preset.text))
    try:
        return ClipConfig(
            embed_dim=model.width or preset.embed_dim,
            image=ImageTower(
                image_size=prepared.image_size,
                patch_size=patch_size,
                width=image.width,
                heads=image.heads,
                layers=image.layers,
                stem=Stem(model.stem or preset.stem),
                **traits,
            ),
            text=TextTower(
                vocab_size=vocab_size,
                end_token=end_token,
                context_length=context_length,
                width=text.width,
                heads=text.heads,
                layers=text.layers,
            ),
            preprocessing=prepared,
        )
    except ValidationError as error:
        raise explain(error) from None
