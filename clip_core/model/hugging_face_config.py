"""Hugging Face's configurations of a CLIPModel: config.json and preprocessor_config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_core.errors import CheckpointError
from clip_core.model.not_weights import invalid_json
from clip_core.model.published_config import PublishedConfig, make_config, mlp_ratio, number, unsupported
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
    if kind != "clip":
        raise unsupported(where, f"model_type {kind!r:.40}")
    vision, text = _tower(where, settings, "vision"), _tower(where, settings, "text")
    if vision.get("num_channels", 3) != 3:
        raise unsupported(where, f"images of {vision['num_channels']!r:.20} channels")
    image_size = number(where, vision, "image_size", 224)
    vocab_size = number(where, text, "vocab_size", 49408)
    end_token = number(where, text, "eos_token_id", vocab_size - 1)
    highest = end_token == _LEGACY_EOS
    config = {
        "embed_dim": number(where, settings, "projection_dim", 512),
        "image": {
            "image_size": image_size,
            "patch_size": number(where, vision, "patch_size", 32),
            "pooling": Pooling.CLASS_TOKEN,
            "class_token": True,
            "pre_norm": True,
            "patch_bias": False,
            **_shared(where, vision, {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}),
        },
        "text": {
            "vocab_size": vocab_size,
            "end_token": vocab_size - 1 if highest else end_token,
            "context_length": number(where, text, "max_position_embeddings", 77),
            **_shared(where, text, {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}),
        },
        "preprocessing": _preprocessing(folder, image_size),
    }
    return PublishedConfig(make_config(where, config), None if highest else end_token, highest)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: if there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise invalid_json(path, error) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return found


def _tower(where: Path, settings: Settings, name: str) -> dict[str, Any]:
    """`text_config` with what `text_config_dict`, an older spelling, adds to it."""
    parts = [settings.get(f"{name}_config"), settings.get(f"{name}_config_dict")]
    if any(part is not None and not isinstance(part, dict) for part in parts):
        raise CheckpointError(f"{where}: {name}_config is not a JSON object.")
    return {key: value for part in parts for key, value in (part or {}).items()}


def _shared(where: Path, tower: Settings, defaults: Mapping[str, int]) -> dict[str, Any]:
    """Settings that both towers have."""
    said = tower.get("hidden_act", "quick_gelu")
    if said not in _ACTIVATIONS:
        raise unsupported(where, f"hidden_act {said!r:.40}")
    width, hidden, heads = (number(where, tower, key, default) for key, default in defaults.items())
    return {
        "width": width,
        "mlp_ratio": mlp_ratio(width, hidden),
        "heads": heads,
        "layers": number(where, tower, "num_hidden_layers", 12),
        "activation": _ACTIVATIONS[said],
        "norm_eps": tower.get("layer_norm_eps", 1e-5),
    }


def _preprocessing(folder: Path, image_size: int) -> dict[str, Any]:
    """The values of preprocessor_config.json, and CLIP's defaults."""
    where = folder / PREPROCESSOR
    if where.is_file():
        said = read_json(where)
    elif (folder / PROCESSOR).is_file():
        where = folder / PROCESSOR
        said = read_json(where).get("image_processor") or {}
    else:
        return {"image_size": image_size}
    values: dict[str, Any] = {"image_size": image_size}
    for key, name in (("image_mean", "mean"), ("image_std", "std")):
        values |= {name: said[key]} if said.get(key) is not None else {}
    resample = said.get("resample", 3)
    if resample not in _INTERPOLATIONS:
        raise unsupported(where, f"resample {resample!r:.20}")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if said.get(key) is False:
            raise unsupported(where, f"{key} false")
    return values | {"interpolation": _INTERPOLATIONS[resample], "resize_mode": _resize_mode(where, said, image_size)}


def _resize_mode(where: Path, said: Settings, image_size: int) -> str:
    """`shortest` side and crop, or `squash`; sizes must be the image size of the network."""
    size, crop = said.get("size", image_size), said.get("crop_size", image_size)
    crop = crop if isinstance(crop, dict) else {"height": crop, "width": crop}
    cropped = said.get("do_center_crop", True)
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
