"""A network as a folder that transformers reads: CLIPModel, SiglipModel or MetaClip2Model, and its processor."""

from pathlib import Path

from clip_core.data.tokenizer import Tokenizer
from clip_core.files import write_json
from clip_core.inference.manifest import CONFIG, PREPROCESSOR, TOKENIZER
from clip_core.model.clip import CLIP
from clip_core.model.weight_maps import to_hugging_face
from clip_core.network import LIBRARY_TOWERS, AttentionPooling, ClipConfig, Pooling, Stem
from clip_core.text import printable
from export.config_files import OWN_TRAITS, model_config, model_type, preprocessor_config
from export.published_files import save_weights, write_tokenizer

_ARCHITECTURES = {"clip": "CLIPModel", "siglip": "SiglipModel", "metaclip_2": "MetaClip2Model"}


def obstacles(config: ClipConfig, tokenizer: Tokenizer) -> list[str]:
    """The traits of a network that its architecture in transformers cannot express."""
    others = [tower.architecture for tower in (config.image, config.text) if isinstance(tower, LIBRARY_TOWERS)]
    if others:
        return [f"{printable(name, 60)} as a tower" for name in others]
    return _siglip_obstacles(config) if model_type(config) == "siglip" else _clip_obstacles(config)


def _siglip_obstacles(config: ClipConfig) -> list[str]:
    image, text = config.own_image, config.own_text
    head = AttentionPooling(heads=image.heads, mlp_width=image.mlp_width, activation=image.activation)
    found = {
        "another pooling head than its blocks have": image.attention_pooling != head,
        "a convolutional stem": image.stem is not Stem.PATCH,
        "a class token": image.has_class_token,
        "a LayerNorm before the image's blocks": image.pre_norm,
        "no bias in its patch embedding": not image.patch_bias,
        "a projection of its images": image.projection,
        "a causal text tower": text.causal,
        f"pooling at the {text.pooling.value} token of the text": text.pooling is not Pooling.LAST,
        "no bias in its text projection": not text.projection_bias,
        "no bias of the logits": not config.logit_bias,
        f"resize mode {config.preprocessing.resize_mode}": config.preprocessing.resize_mode == "longest",
    }
    return [trait for trait, there in found.items() if there]


def _clip_obstacles(config: ClipConfig) -> list[str]:
    image, text = config.own_image, config.own_text
    found = {
        "a convolutional stem": image.stem is not Stem.PATCH,
        "mean pooling of the patches": image.pooling is not Pooling.CLASS_TOKEN,
        "no LayerNorm before the image's blocks": not image.pre_norm,
        "a bias in its patch embedding": image.patch_bias,
        "a bias in its image projection": image.projection_bias,
        "no projection of its images": not image.projection,
        "a text tower that is not causal": not text.causal,
        f"pooling at the {text.pooling.value} token of the text": text.pooling is not Pooling.END_OF_TEXT,
        "a bias in its text projection": text.projection_bias,
        "a bias of the logits": config.logit_bias,
        f"resize mode {config.preprocessing.resize_mode}": config.preprocessing.resize_mode == "longest",
    }
    return [trait for trait, there in found.items() if there]


def write(folder: Path, model: CLIP, tokenizer: Tokenizer) -> None:
    """Configuration, weights and tokenizer."""
    config, kind = model.config, model_type(model.config)
    save_weights(folder / "model.safetensors", to_hugging_face(model.state_dict(), config))
    write_tokenizer(folder, tokenizer, config.own_text, pad_with_end=kind == "clip")
    described = model_config(config, model.logit_scale().item(), folder / TOKENIZER)
    for tower in ("vision_config", "text_config"):
        described[tower] = {key: value for key, value in described[tower].items() if key not in OWN_TRAITS}
    write_json(folder / CONFIG, {"architectures": [_ARCHITECTURES[kind]]} | described)
    name = "Siglip" if kind == "siglip" else "CLIP"
    processor = preprocessor_config(config.preprocessing, f"{name}ImageProcessor") | {
        "processor_class": f"{name}Processor"
    }
    write_json(folder / PREPROCESSOR, processor)
