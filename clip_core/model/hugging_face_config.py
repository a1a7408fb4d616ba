"""Hugging Face's configurations of a CLIPModel, SiglipModel or MetaClip2Model, and of their preprocessing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_core.errors import CheckpointError
from clip_core.files import load_json
from clip_core.model.not_weights import invalid_json
from clip_core.model.published_config import SQUASHED, PublishedConfig, make_config, number, unsupported
from clip_core.network import Activation, Pooling

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # where transformers 5 may keep it instead

_ACTIVATIONS = {
    "quick_gelu": Activation.QUICK_GELU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_LEGACY_EOS = 2  # in older configurations, which mean the highest token id of the caption

Settings = Mapping[str, Any]


def from_folder(folder: Path) -> PublishedConfig:
    """The architecture and preprocessing of the configurations in a folder, with CLIPModel's defaults.

    Raises:
        CheckpointError: naming a setting that is unsupported, or a value that is invalid.
    """
    where = folder / CONFIG
    settings = read_json(where)
    kind = settings.get("model_type", "clip")
    read = {"clip": _clip, "metaclip_2": _metaclip_2, "siglip": _siglip}.get(kind if isinstance(kind, str) else "")
    if kind == "siglip2":
        raise unsupported(where, "SigLIP2's NaFlex tower, for images of any shape (model_type 'siglip2')")
    if read is None:
        raise unsupported(where, f"model_type {kind!r:.40}")
    vision, text = _tower(where, settings, "vision"), _tower(where, settings, "text")
    if vision.get("num_channels", 3) != 3:
        raise unsupported(where, f"images of {vision['num_channels']!r:.20} channels")
    return read(folder, settings, vision, text)


def _clip(folder: Path, settings: Settings, vision: Settings, text: Settings) -> PublishedConfig:
    """CLIPModel: end token 2 is an old mistake, and means the highest token id of a caption."""
    where = folder / CONFIG
    vocab_size = number(where, text, "vocab_size", 49408)
    end_token = number(where, text, "eos_token_id", vocab_size - 1)
    highest = end_token == _LEGACY_EOS
    config = _clip_config(folder, settings, vision, text, vocab_size - 1 if highest else end_token)
    return PublishedConfig(make_config(where, config), None if highest else end_token, highest)


def _metaclip_2(folder: Path, settings: Settings, vision: Settings, text: Settings) -> PublishedConfig:
    """MetaClip2Model: CLIPModel with another vocabulary, whose end token is 2."""
    where = folder / CONFIG
    end_token = number(where, text, "eos_token_id", 49407)
    config = make_config(where, _clip_config(folder, settings, vision, text, end_token))
    return PublishedConfig(config, end_token, highest_token=False, own_tokenizer=True)


def _clip_config(folder: Path, settings: Settings, vision: Settings, text: Settings, end_token: int) -> dict[str, Any]:
    where = folder / CONFIG
    image_size = number(where, vision, "image_size", 224)
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    text_sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    return {
        "embed_dim": number(where, settings, "projection_dim", 512),
        "image": {
            "image_size": image_size,
            "patch_size": number(where, vision, "patch_size", 32),
            "pooling": Pooling.CLASS_TOKEN,
            "class_token": True,
            "pre_norm": True,
            "patch_bias": False,
            **_shared(where, vision, sizes),
        },
        "text": {
            "vocab_size": number(where, text, "vocab_size", 49408),
            "end_token": end_token,
            "context_length": number(where, text, "max_position_embeddings", 77),
            **_shared(where, text, text_sizes),
        },
        "preprocessing": _preprocessing(folder, image_size, {}),
    }


def _siglip(folder: Path, settings: Settings, vision: Settings, text: Settings) -> PublishedConfig:
    """SiglipModel, of SigLIP and of SigLIP2 at fixed sizes; its eos_token_id is CLIP's, and means nothing."""
    where = folder / CONFIG
    if vision.get("vision_use_head") is False:
        raise unsupported(where, "an image tower without its pooling head (vision_use_head false)")
    image_size = number(where, vision, "image_size", 224)
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    image = _shared(where, vision, sizes, "gelu_pytorch_tanh", 1e-6)
    text_tower = _shared(where, text, sizes, "gelu_pytorch_tanh", 1e-6)
    vocab_size = number(where, text, "vocab_size", 32000)
    config = {
        "embed_dim": number(where, text, "projection_size", text_tower["width"]),
        "logit_bias": True,
        "image": {
            "image_size": image_size,
            "patch_size": number(where, vision, "patch_size", 16),
            "pooling": Pooling.ATTENTION,
            "attention_pooling": {key: image[key] for key in ("heads", "mlp_width", "activation")},
            "norm_after_pooling": False,
            "projection": False,
            **image,
        },
        "text": {
            "vocab_size": vocab_size,
            "end_token": vocab_size - 1,  # until the tokenizer is known
            "context_length": number(where, text, "max_position_embeddings", 64),
            "causal": False,
            "pooling": Pooling.LAST,
            "projection_bias": True,
            **text_tower,
        },
        "preprocessing": _preprocessing(folder, image_size, SQUASHED),
    }
    return PublishedConfig(make_config(where, config), None, highest_token=False, own_tokenizer=True, siglip=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: if there is none.
    """
    try:
        found = load_json(path)
    except (OSError, ValueError) as error:
        raise invalid_json(path, error) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return found


def _tower(where: Path, settings: Settings, name: str) -> dict[str, Any]:
    """`text_config` with what `text_config_dict`, an older spelling, adds to it."""
    parts = [settings.get(f"{name}_config"), settings.get(f"{name}_config_dict")]
    if any(part is not None and not isinstance(part, dict) for part in parts):
        raise CheckpointError(f"{where}: {name}_config is not a JSON object.")
    return {key: value for part in parts for key, value in (part or {}).items() if value is not None}


def _shared(
    where: Path, tower: Settings, defaults: Mapping[str, int], activation: str = "quick_gelu", eps: float = 1e-5
) -> dict[str, Any]:
    """Settings that both towers have; configurations leave out what is the default of their model."""
    said = tower.get("hidden_act", activation)
    if said not in _ACTIVATIONS:
        raise unsupported(where, f"hidden_act {said!r:.40}")
    width, hidden, heads = (number(where, tower, key, default) for key, default in defaults.items())
    return {
        "width": width,
        "mlp_width": hidden,
        "heads": heads,
        "layers": number(where, tower, "num_hidden_layers", 12),
        "activation": _ACTIVATIONS[said],
        "norm_eps": tower.get("layer_norm_eps", eps),
    }


def _preprocessing(folder: Path, image_size: int, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of preprocessor_config.json, and the model's defaults."""
    where = folder / PREPROCESSOR
    if where.is_file():
        said = read_json(where)
    elif (folder / PROCESSOR).is_file():
        where = folder / PROCESSOR
        said = read_json(where).get("image_processor") or {}
    else:
        return {"image_size": image_size, **defaults}
    values: dict[str, Any] = {"image_size": image_size, **defaults}
    for key, name in (("image_mean", "mean"), ("image_std", "std")):
        values |= {name: said[key]} if said.get(key) is not None else {}
    resample = said.get("resample", 3)
    if resample not in _INTERPOLATIONS:
        raise unsupported(where, f"resample {resample!r:.20}")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if said.get(key) is False:
            raise unsupported(where, f"{key} false")
    factor = said.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-6:
        raise unsupported(where, f"rescale_factor {factor!r:.30}, where 1/255 is expected")
    return values | {
        "interpolation": _INTERPOLATIONS[resample],
        "resize_mode": _resize_mode(where, said, image_size, defaults),
    }


def _resize_mode(where: Path, said: Settings, image_size: int, defaults: Mapping[str, Any]) -> str:
    """`shortest` side and crop, or `squash`; sizes must be the image size of the network."""
    square = {"height": image_size, "width": image_size}
    size, crop = said.get("size", square if defaults else image_size), said.get("crop_size", image_size)
    crop = crop if isinstance(crop, dict) else {"height": crop, "width": crop}
    cropped = said.get("do_center_crop", not defaults)
    if isinstance(size, dict) and "shortest_edge" not in size:
        mode, edges = "squash", [size.get("height"), size.get("width")]
    else:
        mode, edges = "shortest", [size["shortest_edge"] if isinstance(size, dict) else size]
        if not cropped:
            raise unsupported(where, "images that are not square (do_center_crop false)")
    edges += [crop.get("height"), crop.get("width")] if cropped else []
    wrong = [edge for edge in edges if edge != image_size]
    if wrong:
        raise CheckpointError(f"{where} makes images of {wrong[0]!r:.20} pixels; the network is for {image_size}.")
    return mode
