"""open_clip's configurations: open_clip_config.json, the name of an architecture, or the shapes of its tensors."""

import importlib.util
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_core.data.cleaning import Cleaning
from clip_core.errors import CheckpointError, UsageError
from clip_core.model.hugging_face_tower import text_tower
from clip_core.model.published_config import SQUASHED, PublishedConfig, make_config, number, unsupported
from clip_core.model.timm_trunk import image_tower, timm_tower
from clip_core.model.torch_files import StoredTensor
from clip_core.network import Activation, Pooling
from clip_core.presets import PRESETS

CONTEXT_LENGTH = 77
HEAD_WIDTH = 64
_QUICK = "-quickgelu"

# Settings that change what a network computes and that our towers do not have, for messages.
_REFUSED = {
    "multimodal_cfg": "CoCa's text decoder",
    "attentional_pool": "attentional pooling",
    "embed_cls": "a class token among the words",
    "ls_init_value": "layer scale",
    "qk_norm": "normalised queries and keys (qk_norm)",
    "scaled_cosine_attn": "cosine attention (scaled_cosine_attn)",
    "scale_heads": "scaled heads (scale_heads)",
    "scale_attn_inner": "a norm inside attention (scale_attn_inner)",
    "scale_attn": "a norm behind attention (scale_attn)",
    "scale_fc": "a norm inside the MLP (scale_fc)",
}
_KNOWN = frozenset(
    {
        "embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_bias", "init_logit_scale",
        "nonscalar_logit_scale", "output_dict", "layers", "width", "head_width", "heads", "mlp_ratio", "patch_size",
        "image_size", "no_ln_pre", "final_ln_after_pool", "pool_type", "act_kwargs", "norm_kwargs", "context_length",
        "vocab_size", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "pad_id", "eos_id", "no_causal_mask",
        "proj_bias", "proj_type", "block_type", "pos_embed_type", "patch_dropout", "output_tokens",
        "attn_pooler_queries", "attn_pooler_heads", "hf_model_name", "hf_model_pretrained", "hf_proj_type",
        "hf_pooler_type", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias",
        "timm_drop", "timm_drop_path",
    }
)  # fmt: skip
_IMAGE_POOLING = {"tok": Pooling.CLASS_TOKEN, "avg": Pooling.MEAN}
_TEXT_POOLING = {
    "argmax": Pooling.END_OF_TEXT, "eos": Pooling.END_OF_TEXT, "first": Pooling.FIRST, "last": Pooling.LAST,
}  # fmt: skip

Settings = Mapping[str, Any]


def named_settings(name: str) -> dict[str, Any]:
    """The `model_cfg` of an architecture of open_clip: from an installed open_clip, or from the presets.

    Raises:
        UsageError: if the name is unknown.
    """
    clean = name.replace("/", "-")
    spec = importlib.util.find_spec("open_clip")  # found, not imported
    places = [Path(place) / "model_configs" for place in (spec.submodule_search_locations or ())] if spec else []
    if re.fullmatch(r"[\w.+-]+", clean):
        for file in (place / f"{clean}.json" for place in places):
            if file.is_file():
                return dict(json.loads(file.read_text(encoding="utf-8")))
    preset = PRESETS.get(clean.removesuffix(_QUICK))
    if preset is None or not preset.published:
        published = [each for each, facts in PRESETS.items() if facts.published]
        raise UsageError(
            f"no model is called {name!r:.60}; known here are {', '.join(published)} (each also with {_QUICK})"
            + (" and those of the open_clip that is installed." if places else "; for others install open_clip.")
        )
    image, text = preset.image, preset.text
    return {
        "embed_dim": preset.embed_dim,
        "quick_gelu": clean.endswith(_QUICK),
        "vision_cfg": {
            "image_size": preset.image_size, "patch_size": preset.patch_size, "width": image.width,
            "layers": image.layers, "head_width": image.width // image.heads,
        },
        "text_cfg": {"width": text.width, "heads": text.heads, "layers": text.layers, "vocab_size": 49408},
    }  # fmt: skip


def from_settings(
    where: Path | str,
    settings: Settings,
    preprocess: Settings,
    *,
    folder: Path | None = None,
    described: Settings | None = None,
) -> PublishedConfig:
    """The architecture and preprocessing of open_clip's `model_cfg` and `preprocess_cfg`.

    Args:
        where: what messages call the configuration.
        folder: that of the weights, where a configuration of a Hugging Face text tower may be.
        described: the settings of that text tower, where the configuration holds them.
    Raises:
        CheckpointError: naming a setting that is unsupported, or a value that is invalid.
    """
    vision, text = _section(where, settings, "vision_cfg"), _section(where, settings, "text_cfg")
    for part in (settings, vision, text):
        _refuse_unsupported(where, part)
    if isinstance(vision.get("layers"), list):
        raise unsupported(where, "a ResNet as its image tower")
    if (text.get("proj_type") or "linear") != "linear":
        raise unsupported(where, f"text projection {text['proj_type']!r}")
    quick = bool(settings.get("quick_gelu"))
    of_timm = bool(vision.get("timm_model_name"))
    own_image = image_tower(where, vision) if of_timm else _image_tower(where, vision, quick)
    image = timm_tower(where, vision) if own_image is None else own_image
    of_transformers = bool(text.get("hf_model_name"))
    pooled_at = text.get("pool_type", "argmax")
    end_token = number(where, text, "eos_id", 2) if pooled_at == "eos" or text.get("eos_id") is not None else None
    config = {
        "embed_dim": number(where, settings, "embed_dim"),
        "logit_bias": settings.get("init_logit_bias") is not None,
        "image": image,
        "text": text_tower(where, text, described, folder)
        if of_transformers
        else _text_tower(where, text, quick, end_token, pooled_at),
        "preprocessing": _preprocessing(preprocess, image),
    }
    return PublishedConfig(
        make_config(where, config),
        None if of_transformers else end_token,
        highest_token=pooled_at == "argmax" and not of_transformers,
        own_tokenizer=bool(text.get("hf_tokenizer_name")),
        cleaning=_cleaning(where, text),
        trunk=of_timm and own_image is not None,
    )


def _text_tower(
    where: Path | str, text: Settings, quick: bool, end_token: int | None, pooled_at: Any
) -> dict[str, Any]:
    """The values of open_clip's own text Transformer."""
    vocab_size, width = number(where, text, "vocab_size", 49408), number(where, text, "width", 512)
    return {
        "vocab_size": vocab_size,
        "end_token": vocab_size - 1 if end_token is None else end_token,
        "context_length": number(where, text, "context_length", CONTEXT_LENGTH),
        "width": width,
        "heads": number(where, text, "heads", 8),
        "layers": number(where, text, "layers", 12),
        "mlp_width": _mlp_width(where, text, width),
        "causal": not text.get("no_causal_mask"),
        "pooling": _chosen(where, "pool_type", pooled_at, _TEXT_POOLING),
        "projection_bias": bool(text.get("proj_bias")),
        **_shared(where, text, quick),
    }


def _image_tower(where: Path | str, vision: Settings, quick: bool) -> dict[str, Any]:
    """The values of open_clip's own Vision Transformer."""
    width = number(where, vision, "width", 768)
    pooling = _chosen(where, "pool_type", vision.get("pool_type", "tok"), _IMAGE_POOLING)
    return {
        "image_size": number(where, vision, "image_size", 224),
        "patch_size": number(where, vision, "patch_size", 16),
        "width": width,
        "heads": max(1, width // number(where, vision, "head_width", HEAD_WIDTH)),
        "layers": number(where, vision, "layers", 12),
        "mlp_width": _mlp_width(where, vision, width),
        "pooling": pooling,
        "class_token": True,
        "norm_after_pooling": pooling is Pooling.CLASS_TOKEN or bool(vision.get("final_ln_after_pool")),
        "pre_norm": not vision.get("no_ln_pre"),
        "patch_bias": False,
        **_shared(where, vision, quick),
    }


def _mlp_width(where: Path | str, tower: Settings, width: int) -> int:
    ratio = tower.get("mlp_ratio", 4.0)
    if not isinstance(ratio, int | float) or not 0 < width * ratio < 2**31:
        raise CheckpointError(f"{where}: mlp_ratio is {ratio!r:.60}; it must be a positive number.")
    return int(width * ratio)


def _cleaning(where: Path | str, text: Settings) -> Cleaning | None:
    """How the text is cleaned before a tokenizer that is not CLIP's own."""
    said = text.get("tokenizer_kwargs") or {}
    if said.get("strip_sep_token"):
        raise unsupported(where, "a tokenizer with strip_sep_token True")
    if text.get("tokenizer_mode"):
        raise unsupported(where, f"a tokenizer with tokenizer_mode {text['tokenizer_mode']!r:.40}")
    clean = said.get("clean", "whitespace")
    known = {"whitespace": Cleaning.WHITESPACE, "lower": Cleaning.LOWER, "canonicalize": Cleaning.CANONICALIZE}
    own = bool(text.get("hf_tokenizer_name"))
    if clean not in known or not (own or clean in ("whitespace", "lower")):  # CLIP's own lower-cases in any case
        raise unsupported(where, f"a tokenizer with clean {clean!r:.40}")
    return known[clean] if own else None


def from_shapes(
    where: Path, tensors: Mapping[str, StoredTensor], text_prefix: str, activation: Activation
) -> PublishedConfig:
    """The architecture from the shapes of tensors in OpenAI's names; heads are 64 wide, as in all of OpenAI's models.

    Args:
        where: the weight file, for messages.
        text_prefix: of the text tower's names, "" or "text.".
        activation: of both towers; no shape depends on it.
    Raises:
        CheckpointError: if a tensor is missing, or a width is no multiple of 64.
    """
    wanted = {
        "patches": "visual.conv1.weight", "places": "visual.positional_embedding", "proj": "visual.proj",
        "hidden": "visual.transformer.resblocks.0.mlp.c_fc.weight", "words": f"{text_prefix}token_embedding.weight",
        "context": f"{text_prefix}positional_embedding",
        "text_hidden": f"{text_prefix}transformer.resblocks.0.mlp.c_fc.weight",
    }  # fmt: skip
    missing = sorted(name for name in wanted.values() if name not in tensors or len(tensors[name].shape) < 2)
    if missing:
        raise CheckpointError(
            f"{where} has no known architecture: it comes without a configuration and lacks {', '.join(missing)}."
        )
    shape = {key: tensors[name].shape for key, name in wanted.items()}
    width, text_width, patch = shape["patches"][0], shape["words"][1], shape["patches"][-1]
    for each in (width, text_width):
        if each % HEAD_WIDTH:
            raise CheckpointError(
                f"{where} has no configuration, and its width {each} is not a multiple of {HEAD_WIDTH}, the "
                "width of OpenAI's heads; name its architecture with --init-model."
            )
    image_size = math.isqrt(max(0, shape["places"][0] - 1)) * patch
    config = {
        "embed_dim": shape["proj"][1],
        "logit_bias": "logit_bias" in tensors,
        "image": {
            "image_size": image_size,
            "patch_size": patch,
            "width": width,
            "heads": width // HEAD_WIDTH,
            "layers": _count(tensors, "visual.transformer.resblocks."),
            "mlp_width": shape["hidden"][0],
            "pooling": Pooling.CLASS_TOKEN,
            "class_token": True,
            "pre_norm": "visual.ln_pre.weight" in tensors,
            "patch_bias": False,
            "activation": activation,
        },
        "text": {
            "vocab_size": shape["words"][0],
            "end_token": shape["words"][0] - 1,
            "context_length": shape["context"][0],
            "width": text_width,
            "heads": text_width // HEAD_WIDTH,
            "layers": _count(tensors, f"{text_prefix}transformer.resblocks."),
            "mlp_width": shape["text_hidden"][0],
            "projection_bias": f"{text_prefix}text_projection.bias" in tensors,
            "activation": activation,
        },
        "preprocessing": {"image_size": image_size},
    }
    return PublishedConfig(make_config(where, config), None, highest_token=True)


def _count(tensors: Mapping[str, StoredTensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)})


def _section(where: Path | str, settings: Settings, key: str) -> dict[str, Any]:
    section = settings.get(key)
    if not isinstance(section, dict):
        raise CheckpointError(f"{where} is not a configuration of open_clip: it has no {key}.")
    return section


def _refuse_unsupported(where: Path | str, part: Settings) -> None:
    for key, value in part.items():
        if value in (None, False):
            continue
        if key in _REFUSED:
            named = f" ({value})" if isinstance(value, str) else ""
            raise unsupported(where, _REFUSED[key] + named)
        if key not in _KNOWN or (key == "block_type" and value != "default"):
            raise unsupported(where, f"{key} {value!r:.40}")


def _chosen(where: Path | str, key: str, value: Any, known: Mapping[str, Pooling]) -> Pooling:
    if value not in known:
        raise unsupported(where, f"{key} {value!r:.40}")
    return known[value]


def _shared(where: Path | str, tower: Settings, quick: bool) -> dict[str, Any]:
    """Activation and epsilon of a tower."""
    act, norm = tower.get("act_kwargs") or {}, tower.get("norm_kwargs") or {}
    if norm.keys() - {"eps"} or act.keys() - {"approximate"} or (act and quick):
        raise unsupported(where, f"act_kwargs {act!r:.40} with norm_kwargs {norm!r:.40}")
    tanh = act.get("approximate") == "tanh"
    activation = Activation.GELU_TANH if tanh else Activation.QUICK_GELU if quick else Activation.GELU
    return {"activation": activation, "norm_eps": norm.get("eps", 1e-5)}


def _preprocessing(said: Settings, image: Settings) -> dict[str, Any]:
    """The values of `preprocess_cfg`, and the defaults of CLIP, or of SigLIP for its trunks."""
    defaults = SQUASHED if image.get("attention_pooling") else {}
    ours = {"mean": "mean", "std": "std", "interpolation": "interpolation", "resize_mode": "resize_mode"}
    values = {name: said[key] for key, name in ours.items() if said.get(key) is not None}
    fill = said.get("fill_color")
    return {"image_size": image["image_size"], **defaults, **values} | ({"fill": fill} if fill is not None else {})
