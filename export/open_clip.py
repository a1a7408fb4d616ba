"""A network as a folder that open_clip reads as `local-dir:FOLDER`."""

from pathlib import Path
from typing import Any

from clip_core.data.cleaning import Cleaning
from clip_core.data.tokenizer import Tokenizer
from clip_core.files import write_json
from clip_core.model.clip import CLIP
from clip_core.model.hugging_face_tower import TEXT_KEY
from clip_core.model.published_config import mlp_ratio
from clip_core.model.timm_trunk import trunk_name
from clip_core.model.weight_maps import to_open_clip
from clip_core.network import (
    Activation,
    ClipConfig,
    ExternalTower,
    ImageTower,
    Pooling,
    Preprocessing,
    Stem,
    TextTower,
    TimmTower,
    TransformersTower,
)
from export.published_files import save_weights, write_tokenizer

# The tokens of a caption in CLIP's vocabulary, the only one that open_clip includes.
_PROBE = ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407])
_EPS = 1e-5
_OWN = (ImageTower, TextTower)


def obstacles(config: ClipConfig, tokenizer: Tokenizer) -> list[str]:
    """The traits of a network that open_clip's CLIP cannot express."""
    image, text = config.image, config.text
    reads_at_end = isinstance(text, TransformersTower) or (isinstance(text, TextTower) and _reads_at_end(text))
    quick = [tower.activation is Activation.QUICK_GELU for tower in (image, text) if isinstance(tower, _OWN)]
    trunk = isinstance(image, ImageTower) and image.attention_pooling is not None
    found = {
        "QuickGELU in one tower only": len(set(quick)) > 1 and not trunk,
        "captions whose white space is not collapsed, as open_clip's always is": (
            tokenizer.cleaning is Cleaning.SIGLIP2
        ),
        'padding with "!", which transformers would take out of captions': (
            tokenizer.is_clip and tokenizer.pad_id == 0 and not _is_open_clips(tokenizer) and not reads_at_end
        ),
    }
    own = _image_obstacles(image, trunk=trunk) if isinstance(image, ImageTower) else []
    return own + [trait for trait, there in found.items() if there]


def _image_obstacles(image: ImageTower, *, trunk: bool) -> list[str]:
    found = {
        "attention pooling in a shape that none of timm's SigLIP trunks has": trunk and trunk_name(image) is None,
        "a convolutional stem": image.stem is not Stem.PATCH,
        "mean pooling without a class token": image.pooling is Pooling.MEAN and not image.has_class_token,
        "a bias in its patch embedding": image.patch_bias and not trunk,
        "a bias in its image projection": image.projection_bias,
        "no projection of its images": not image.projection and not trunk,
    }
    return [trait for trait, there in found.items() if there]


def write(folder: Path, model: CLIP, tokenizer: Tokenizer) -> None:
    """Configuration, weights and tokenizer."""
    config = model.config
    text = config.text
    assert not isinstance(text, ExternalTower)  # refused before
    save_weights(folder / "open_clip_model.safetensors", to_open_clip(model.state_dict(), config))
    write_tokenizer(folder, tokenizer, text, pad_with_end=isinstance(text, TextTower) and _reads_at_end(text))
    described: dict[str, Any] = {
        "model_cfg": model_cfg(config, tokenizer, None if model.logit_bias is None else model.logit_bias.item()),
        "preprocess_cfg": preprocess_cfg(config.preprocessing),
    }
    if isinstance(text, TransformersTower):
        described[TEXT_KEY] = text.settings
    write_json(folder / "open_clip_config.json", described)


def model_cfg(config: ClipConfig, tokenizer: Tokenizer, logit_bias: float | None) -> dict[str, Any]:
    """The architecture, with open_clip's defaults left out."""
    image, text = config.image, config.text
    trunk = isinstance(image, ImageTower) and image.attention_pooling is not None
    text_cfg = _hf_text_cfg(text) if isinstance(text, TransformersTower) else _text_cfg(config.own_text, tokenizer)
    padded = isinstance(text, TextTower) and not _reads_at_end(text)
    if isinstance(text, TransformersTower) or not _is_open_clips(tokenizer) or (tokenizer.pad_id and padded):
        text_cfg["hf_tokenizer_name"] = "tokenizer.json"  # any name: for a local folder it means that folder
        if tokenizer.cleaning in (Cleaning.LOWER, Cleaning.CANONICALIZE):  # tokenizer.json itself has the others
            text_cfg["tokenizer_kwargs"] = {"clean": tokenizer.cleaning.value}
    vision_cfg = _timm_cfg(image) if isinstance(image, TimmTower) else _vision_cfg(config.own_image)
    cfg: dict[str, Any] = {"embed_dim": config.embed_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    if trunk or not isinstance(image, ImageTower):
        cfg["custom_text"] = True
    if any(tower.activation is Activation.QUICK_GELU for tower in (text, image) if isinstance(tower, _OWN)):
        cfg["quick_gelu"] = True
    if logit_bias is not None:
        cfg["init_logit_bias"] = logit_bias
    return cfg


def _text_cfg(text: TextTower, tokenizer: Tokenizer) -> dict[str, Any]:
    cfg = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        **_shared(text),
    }
    if text.pooling is not Pooling.END_OF_TEXT:
        cfg["pool_type"] = text.pooling.value
    elif text.end_token != tokenizer.vocab_size - 1:  # open_clip's default reads at the highest number
        cfg["pool_type"] = "eos"
    cfg["eos_id"] = text.end_token  # which open_clip compares with the tokenizer's
    if not text.causal:
        cfg["no_causal_mask"] = True
    if text.projection_bias:
        cfg["proj_bias"] = True
    return cfg


def _hf_text_cfg(text: TransformersTower) -> dict[str, Any]:
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "hf_model_name": text.architecture,
        "hf_model_pretrained": False,
        "hf_pooler_type": text.pooling,
        "hf_proj_type": None if text.projection == "none" else text.projection,
    }


def _timm_cfg(image: TimmTower) -> dict[str, Any]:
    return {
        "image_size": image.image_size,
        "timm_model_name": image.architecture,
        "timm_model_pretrained": False,
        "timm_pool": image.pooling,
        "timm_proj": image.projection or None,
        "timm_proj_bias": image.projection_bias,
    }


def _vision_cfg(image: ImageTower) -> dict[str, Any]:
    if image.attention_pooling is not None:
        return {
            "image_size": image.image_size,
            "timm_model_name": trunk_name(image),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "linear" if image.projection else "none",
        }
    cfg: dict[str, Any] = {
        "image_size": image.image_size,
        "layers": image.layers,
        "width": image.width,
        "head_width": image.width // image.heads,
        "patch_size": image.patch_size,
        **_shared(image),
    }
    if not image.pre_norm:
        cfg["no_ln_pre"] = True
    if image.pooling is Pooling.MEAN:
        cfg |= {"pool_type": "avg", "final_ln_after_pool": image.norm_after_pooling}
    return cfg


def preprocess_cfg(preprocessing: Preprocessing) -> dict[str, Any]:
    return {
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "resize_mode": preprocessing.resize_mode,
        "fill_color": preprocessing.fill,
    }


def _shared(tower: ImageTower | TextTower) -> dict[str, Any]:
    cfg: dict[str, Any] = {"mlp_ratio": mlp_ratio(tower.width, tower.mlp_width)}
    if tower.activation is Activation.GELU_TANH:
        cfg["act_kwargs"] = {"approximate": "tanh"}
    if tower.norm_eps != _EPS:
        cfg["norm_kwargs"] = {"eps": tower.norm_eps}
    return cfg


def _reads_at_end(text: TextTower) -> bool:
    """Whether tokens after the end token have no effect."""
    return not text.reads_padding


def _is_open_clips(tokenizer: Tokenizer) -> bool:
    words, numbers = _PROBE
    return tokenizer.is_clip and bool(tokenizer.encode([words])[0][: len(numbers)].tolist() == numbers)
