"""config.json, preprocessor_config.json and tokenizer_config.json, as Hugging Face defines them."""

import math
from pathlib import Path
from typing import Any

import tokenizers

from clip_core.data.clip_text import is_clip_bpe
from clip_core.network import (
    Activation,
    ClipConfig,
    ExternalTower,
    ImageTower,
    Preprocessing,
    TextTower,
    TimmTower,
    TransformersTower,
)

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers, which are the ones that Hugging Face stores
_ACTIVATIONS = {
    Activation.GELU: "gelu",
    Activation.QUICK_GELU: "quick_gelu",
    Activation.GELU_TANH: "gelu_pytorch_tanh",
}
# Keys of our own, for towers that differ from OpenAI's and SigLIP's.
OWN_TRAITS = ("pooling", "stem", "pre_norm", "class_token", "norm_after_pooling")
_METACLIP_2_END = 2  # which CLIPModel would take for an old mistake


def model_config(config: ClipConfig, logit_scale: float, tokenizer: Path) -> dict[str, Any]:
    """config.json, with OWN_TRAITS beside the keys of Hugging Face, and `encoder` for an external tower."""
    image, text = config.image, config.text
    inner = tokenizers.Tokenizer.from_file(str(tokenizer))
    kind = model_type(config)
    head = {} if kind == "siglip" else {"projection_dim": config.embed_dim}
    scale = {} if kind == "siglip" else {"logit_scale_init_value": math.log(logit_scale)}
    return {
        "model_type": kind,
        **head,
        **scale,
        "vision_config": _tower(image, config.embed_dim)
        | head
        | {"image_size": image.image_size, "num_channels": 3}
        | (_image_traits(image) if isinstance(image, ImageTower) else {}),
        "text_config": _tower(text, config.embed_dim)
        | (head or {"projection_size": config.embed_dim})
        | {
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "bos_token_id": inner.encode("").ids[0],
            "eos_token_id": text.end_token,
            "pad_token_id": (inner.padding or {}).get("pad_id", text.end_token),
        }
        | ({"pooling": text.pooling.value} if isinstance(text, TextTower) else {}),
    }


def model_type(config: ClipConfig) -> str:
    """transformers' name of the architecture: `clip`, `siglip` or `metaclip_2`."""
    if isinstance(config.image, ImageTower) and config.image.attention_pooling is not None:
        return "siglip"
    own = isinstance(config.text, TextTower)
    return "metaclip_2" if own and config.text.end_token == _METACLIP_2_END else "clip"


def _image_traits(image: ImageTower) -> dict[str, Any]:
    return {
        "patch_size": image.patch_size,
        "pooling": image.pooling.value,
        "stem": image.stem.value,
        "pre_norm": image.pre_norm,
        "class_token": image.has_class_token,
        "norm_after_pooling": image.norm_after_pooling,
    }


def _tower(
    tower: ImageTower | TimmTower | TextTower | TransformersTower | ExternalTower, embed_dim: int
) -> dict[str, Any]:
    if isinstance(tower, TimmTower | TransformersTower):
        library = "timm" if isinstance(tower, TimmTower) else "transformers"
        return {"projection_dim": embed_dim, "encoder": {"source": library} | tower.model_dump(mode="json")}
    if isinstance(tower, ExternalTower):
        encoder = tower.encoder
        kept = {"source": encoder.source, "architecture": encoder.architecture, "identity": encoder.identity}
        return {"projection_dim": embed_dim, "encoder": kept | {"licence": encoder.licence}}
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": _ACTIVATIONS[tower.activation],
        "layer_norm_eps": tower.norm_eps,
    }


def preprocessor_config(preprocessing: Preprocessing, kind: str = "CLIPImageProcessor") -> dict[str, Any]:
    """preprocessor_config.json for transformers' image processor `kind`."""
    square = {"height": preprocessing.image_size, "width": preprocessing.image_size}
    mode = preprocessing.resize_mode
    resized = preprocessing.resize_size or preprocessing.image_size
    sizes = {
        "shortest": {"shortest_edge": resized},
        "longest": {"longest_edge": preprocessing.image_size},
        "squash": {"height": resized, "width": resized},
    }
    padding = {"do_pad": True, "pad_size": square, "fill": preprocessing.fill} if mode == "longest" else {}
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": sizes[mode],
        "resample": _RESAMPLE[preprocessing.interpolation],
        "do_center_crop": mode == "shortest" or resized != preprocessing.image_size,
        "crop_size": square,
        "crop_rounding": preprocessing.crop_rounding,  # a key of our own
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        **padding,
    }


def tokenizer_config(tokenizer: Path, text: TextTower | TransformersTower | ExternalTower) -> dict[str, Any]:
    """tokenizer_config.json. CLIP's own BPE may pad with "!", which other software would take out of captions."""
    inner = tokenizers.Tokenizer.from_file(str(tokenizer))
    start, end = (inner.id_to_token(number) for number in (inner.encode("").ids[0], text.end_token))
    pad = (inner.padding or {}).get("pad_token", end)
    if isinstance(text, TextTower) and not text.reads_padding and is_clip_bpe(inner):
        pad = end  # either gives the same embedding
    unknown = getattr(inner.model, "unk_token", None)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": text.context_length,
        "bos_token": start,
        "eos_token": end,
        "pad_token": pad,
        **({"unk_token": unknown} if unknown else {}),
        "padding_side": (inner.padding or {}).get("direction", "right"),
        "truncation_side": (inner.truncation or {}).get("direction", "right"),
        "clean_up_tokenization_spaces": False,
    }
