"""Small open_clip models with random weights whose towers timm and transformers build."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import timm
import tokenizers
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.fastvit import FastVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vitamin import HybridEmbed, MbConvStages, VitCfg, VitConvCfg
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import nn

from tests.published import TEXT
from tests.published_siglip import write_tokenizer

SIDE, CONTEXT = 64, 24


def moved(model: nn.Module, seed: int = 0) -> Any:
    """Every weight and batch statistic moved at random by a little, so that nothing is without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and "logit" not in name:
                noise = torch.randn(value.shape, generator=generator) * 0.1
                value.add_(noise.abs() if name.endswith("running_var") else noise)
    return model.eval()


# ---------------------------------------------------------------- small architectures of timm, under names of their own


def _register(name: str, make: Any, **defaults: Any) -> str:
    """A function of timm's kind, which `timm.create_model(name)` calls."""

    def build(pretrained: bool = False, **settings: Any) -> nn.Module:
        known = {key: value for key, value in settings.items() if key in ("num_classes", "global_pool")}
        model: nn.Module = make(**(defaults | known))
        model.default_cfg = {"pool_size": (2, 2) if name.startswith(("convnext", "fastvit")) else None}
        return model

    build.__name__, build.__module__ = name, "timm.models.vision_transformer"
    if not timm.is_model(name):
        timm.models.register_model(build)
    return name


_VIT = {"img_size": SIDE, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}
FASTVIT = _register(
    "fastvit_mci_tiny", FastVit, layers=(1, 1, 1, 1), embed_dims=(16, 16, 32, 32), mlp_ratios=(2, 2, 2, 2),
    token_mixers=("repmixer", "repmixer", "repmixer", "attention"), se_downsamples=(False, False, True, True),
    pos_embs=(None, None, None, None), lkc_use_act=True,
)  # fmt: skip
CONVNEXT = _register("convnext_tiniest", ConvNeXt, depths=(1, 1, 1, 1), dims=(8, 16, 16, 64))
VIT = _register("vit_tiniest", VisionTransformer, **_VIT)
EVA02 = _register(
    "eva02_tiniest", Eva, **_VIT, qkv_fused=False, mlp_ratio=8 / 3, swiglu_mlp=True, scale_mlp=True,
    scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(4, 4),
)  # fmt: skip


def _vitamin(**settings: Any) -> nn.Module:
    convolutions = VitCfg(
        embed_dim=(8, 16, 64), depths=(1, 1, 0), stem_width=8,
        conv_cfg=VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6), head_type="1d",
    )  # fmt: skip
    return VisionTransformer(
        **(_VIT | {"patch_size": 16, "class_token": False, "global_pool": "avg", "pos_embed": "none"} | settings),
        embed_layer=lambda **given: HybridEmbed(MbConvStages(convolutions), **{**given, "patch_size": 1}),
    )  # fmt: skip


VITAMIN = _register("vitamin_tiniest", _vitamin)

# open_clip's vision settings, by what they are
VISION: dict[str, dict[str, Any]] = {
    "MobileCLIP (FastViT)": {"timm_model_name": FASTVIT, "timm_pool": "avg", "timm_proj": None},
    "ConvNeXt": {"timm_model_name": CONVNEXT, "timm_pool": "", "timm_proj": "linear", "timm_drop_path": 0.1},
    "ConvNeXt, MLP": {"timm_model_name": CONVNEXT, "timm_pool": "", "timm_proj": "mlp"},
    "ConvNeXt, abs_attn": {"timm_model_name": CONVNEXT, "timm_pool": "abs_attn", "timm_proj": "linear"},
    "ConvNeXt, rot_attn": {"timm_model_name": CONVNEXT, "timm_pool": "rot_attn", "timm_proj": ""},
    "EVA02": {"timm_model_name": EVA02, "timm_pool": "token", "timm_proj": None},
    "ViTamin": {"timm_model_name": VITAMIN, "timm_pool": "", "timm_proj": "linear"},
    "ViT, class token": {"timm_model_name": VIT, "timm_pool": "token", "timm_proj": "linear", "timm_proj_bias": True},
    "ViT, mean, no projection": {"timm_model_name": VIT, "timm_pool": "avg", "timm_proj": "none"},
}


# ---------------------------------------------------------------- small text towers of transformers

_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
HF_CONFIGS: dict[str, dict[str, Any]] = {
    "xlm-roberta": {"model_type": "xlm-roberta", "max_position_embeddings": 40, "type_vocab_size": 1,
                    "layer_norm_eps": 1e-5, "pad_token_id": 1, **_SMALL},
    "bert": {"model_type": "bert", "max_position_embeddings": 30, **_SMALL},
    "mt5": {"model_type": "mt5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "m2m_100": {"model_type": "m2m_100", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2,
                "encoder_ffn_dim": 48, "max_position_embeddings": 40, "scale_embedding": True},
}  # fmt: skip
# open_clip's text settings, by what they are: the kind of network, and the rest
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "XLM-R, mean, MLP": ("xlm-roberta", {}),
    "XLM-R, first token, linear": (
        "xlm-roberta", {"hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": "linear"},
    ),
    "BERT, pooler, no projection": ("bert", {"hf_pooler_type": "cls_pooler", "hf_proj_type": None}),
    "BERT, mean, lower": ("bert", {"tokenizer_kwargs": {"clean": "lower"}}),
    "mT5, mean": ("mt5", {}),
    "NLLB, first token, linear": ("m2m_100", {"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"}),
}  # fmt: skip


@cache
def _words() -> str:
    letters = [chr(number) for number in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{each}" for each in letters), "photo", "dog", "##ing"]
    inner = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=False)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return str(inner.to_str())


def write_text_files(folder: Path, kind: str) -> int:
    """The tokenizer of a text tower, in `folder`; returns the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "xlm-roberta":
        return int(write_tokenizer(folder, "metaclip 2", tokenizer_class="PreTrainedTokenizerFast").get_vocab_size())
    inner = tokenizers.Tokenizer.from_str(_words())
    inner.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "cls_token": "[CLS]",
            "sep_token": "[SEP]", "unk_token": "[UNK]", "eos_token": "[SEP]"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return int(inner.get_vocab_size())


# ---------------------------------------------------------------- whole models


def write_model(folder: Path, vision: str | None, text: str | None, **settings: Any) -> Any:
    """An open_clip folder with a tower of timm, one of transformers, or both; returns open_clip's model."""
    text_cfg = dict(TEXT)
    if text is not None:
        kind, changes = TEXTS[text]
        vocabulary = write_text_files(folder, kind)
        described = HF_CONFIGS[kind] | {"vocab_size": vocabulary, "pad_token_id": 1 if kind == "xlm-roberta" else 0}
        encoder = folder.with_name(f"{folder.name}-encoder")
        encoder.mkdir()
        (encoder / "config.json").write_text(json.dumps(described))
        text_cfg = {"context_length": CONTEXT, "hf_model_name": str(encoder), "hf_model_pretrained": False,
                    "hf_tokenizer_name": "some/name", **changes}  # fmt: skip
    own = {"layers": 2, "width": 64, "patch_size": 16, "image_size": SIDE}
    timm_cfg = {"image_size": SIDE, "timm_model_pretrained": False}
    model_cfg = {
        "embed_dim": 64,
        "vision_cfg": own if vision is None else timm_cfg | VISION[vision],
        "text_cfg": text_cfg,
        **settings,
    }
    torch.manual_seed(0)
    model = moved(CustomTextCLIP(**model_cfg))
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_cfg | {"custom_text": True}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model
