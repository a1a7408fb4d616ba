"""Small SigLIP, SigLIP2 and MetaCLIP 2 networks with random weights, made by transformers, open_clip and timm."""

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import tokenizers
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import MetaClip2Config, MetaClip2Model, SiglipConfig, SiglipModel

from clip_core.model.timm_trunk import TRUNKS, Trunk
from clip_core.network import Activation
from tests.published import shaken

SIDE, CONTEXT = 32, 64
CAPTIONS = ("a dog", "", "Two people on a beach at sunset, and a RED kite!", "word " * 80)
_WORDS = [*CAPTIONS, "a photo of a cat", "it's the dog's ball", "snow_white & seven dwarfs", "naïve café", "ΟΔΟΣ ΣΑΣ"]


# ---------------------------------------------------------------- tokenizers


@cache
def _unigram(start: tuple[str, ...]) -> str:
    """A unigram model whose first pieces are the special tokens given, as SentencePiece has them."""
    inner = tokenizers.Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.train_from_iterator(
        _WORDS,
        trainers.UnigramTrainer(
            vocab_size=150, unk_token="<unk>", special_tokens=list(start), show_progress=False,
            initial_alphabet=[chr(letter) for letter in range(32, 127)],
        ),
    )  # fmt: skip
    return str(inner.to_str())


def sentencepiece() -> tokenizers.Tokenizer:
    """As SigLIP's: <pad> 0, </s> 1, <unk> 2, and text followed by </s>."""
    inner = tokenizers.Tokenizer.from_str(_unigram(("<pad>", "</s>", "<unk>")))
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return inner


def xlm() -> tokenizers.Tokenizer:
    """As XLM-V's: <s> 0, <pad> 1, </s> 2, <unk> 3, and text between <s> and </s>."""
    inner = tokenizers.Tokenizer.from_str(_unigram(("<s>", "<pad>", "</s>", "<unk>")))
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return inner


@cache
def _gemma() -> str:
    inner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    inner.train_from_iterator(
        [word.lower() for word in _WORDS],
        trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False),
    )
    content = json.loads(inner.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 4]
    return json.dumps(content)


def gemma() -> tokenizers.Tokenizer:
    """As SigLIP2's: <pad> 0, <eos> 1, <bos> 2, <unk> 3, bytes for unknown letters; neither start nor end is added."""
    return tokenizers.Tokenizer.from_str(_gemma())


_SPECIALS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
TOKENIZER_CONFIGS: dict[str, dict[str, Any]] = {
    "v1": {"tokenizer_class": "SiglipTokenizer", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>",
           "do_lower_case": True, "model_max_length": 64},
    "v2": {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True, "padding_side": "right",
           "model_max_length": 64, **_SPECIALS},
    "metaclip 2": {"tokenizer_class": "XLMRobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
                   "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 77},
}  # fmt: skip
MADE = {"v1": sentencepiece, "v2": gemma, "metaclip 2": xlm}


def write_tokenizer(folder: Path, kind: str, **settings: Any) -> tokenizers.Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    inner = MADE[kind]()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIGS[kind] | settings))
    return inner


# ---------------------------------------------------------------- transformers


def siglip_model(kind: str = "v1", seed: int = 0, **settings: Any) -> Any:
    """A tiny SiglipModel; `vision` and `text` add to the towers' settings. Heads 24 wide, 3 patches a side at 38 px."""
    torch.manual_seed(seed)
    shared = {"intermediate_size": 86, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={
            "hidden_size": 32, "projection_size": 48, "vocab_size": MADE[kind]().get_vocab_size(), **shared,
            **settings.get("text", {}),
        },
        vision_config={"hidden_size": 48, "image_size": 38, "patch_size": 12, **shared, **settings.get("vision", {})},
    )  # fmt: skip
    model = shaken(SiglipModel(config), seed)
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-9.5)
    return model


def metaclip_2_model(seed: int = 0) -> Any:
    """A tiny MetaClip2Model, whose end token is 2."""
    torch.manual_seed(seed)
    shared = {"intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MetaClip2Config(
        text_config={
            "hidden_size": 32, "vocab_size": xlm().get_vocab_size(), "max_position_embeddings": 20, "eos_token_id": 2,
            "bos_token_id": 0, "pad_token_id": 1, **shared,
        },
        vision_config={"hidden_size": 48, "image_size": SIDE, "patch_size": 16, **shared},
        projection_dim=24,
    )  # fmt: skip
    return shaken(MetaClip2Model(config), seed)


def save_hugging_face(folder: Path, model: Any, kind: str, **settings: Any) -> Path:
    """A folder as transformers writes it, with the tokenizer of that kind."""
    model.save_pretrained(folder)
    write_tokenizer(folder, kind, **settings)
    return folder


# ---------------------------------------------------------------- open_clip with timm trunks

_TINY = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 2, "mlp_ratio": 1.8}
_SIGLIP = {"class_token": False, "global_pool": "map"}
_CLIP = {"pre_norm": True, "norm_layer": partial(torch.nn.LayerNorm, eps=1e-5)}
TINY_TRUNKS = {
    "exact GELU": "vit_tiny_patch16_siglip_32", "tanh": "vit_tinier_patch16_siglip_40",
    "class token": "vit_tiny_patch16_clip_32",
}  # fmt: skip


def _register(name: str, size: int, activation: Activation, **traits: Any) -> None:
    """A small Vision Transformer under a name that timm and we both know."""

    def make(pretrained: bool = False, **settings: Any) -> VisionTransformer:
        known = {key: value for key, value in settings.items() if key in ("num_classes", "global_pool")}
        model = VisionTransformer(img_size=size, act_layer=activation.value, **(_TINY | traits | known))
        model.default_cfg = {"pool_size": None}
        return model

    make.__name__, make.__module__ = name, "timm.models.vision_transformer"
    if not timm.is_model(name):
        timm.models.register_model(make)
    TRUNKS[name] = Trunk(size, 16, 48, 2, 2, 86, activation, siglip="siglip" in name)


_register(TINY_TRUNKS["exact GELU"], 32, Activation.GELU, **_SIGLIP)
_register(TINY_TRUNKS["tanh"], 40, Activation.GELU_TANH, **_SIGLIP)
_register(TINY_TRUNKS["class token"], 32, Activation.GELU, **_CLIP)


def trunk_settings(kind: str = "v1", trunk: str = "exact GELU", **settings: Any) -> dict[str, Any]:
    """open_clip's `model_cfg` of a tiny SigLIP."""
    name = TINY_TRUNKS[trunk]
    tanh = {"act_kwargs": {"approximate": "tanh"}} if trunk == "tanh" else {}
    return {
        "embed_dim": 48,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": TRUNKS[name].image_size, "timm_model_name": name, "timm_model_pretrained": False,
            "timm_pool": "map", "timm_proj": "none", **settings.get("vision", {}),
        },
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": MADE[kind]().get_vocab_size(), "hf_tokenizer_name": "timm/x",
            "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 32, "heads": 2, "layers": 2, "mlp_ratio": 2.7,
            "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}, **tanh,
            **settings.get("text", {}),
        },
    }  # fmt: skip


def trunk_model(settings: dict[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    plain = {key: value for key, value in settings.items() if key != "custom_text"}
    return shaken(CustomTextCLIP(**plain), seed)


def save_trunk(folder: Path, model: Any, settings: dict[str, Any], kind: str = "v1") -> Path:
    """An open_clip hub folder with the tokenizer of that kind."""
    write_tokenizer(folder, kind, **({"tokenizer_class": "PreTrainedTokenizerFast"} if kind != "v2" else {}))
    half = [0.5, 0.5, 0.5]
    preprocess = {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": settings, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
