"""Names of weights: ours, and those of OpenAI and open_clip, of timm's trunks, and of Hugging Face; one table each.

Shapes: W width, D embedding.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch

from clip_core.model.clip import uninitialised_clip
from clip_core.network import LIBRARY_TOWERS, ClipConfig, ImageTower, Side, TextTower


class Row(NamedTuple):
    """One of our weights and its name in another library.

    `theirs` has several names where ours is their concatenation along the rows (query, key, value); `transposed` where
    theirs has the other axis first; `share` is (first, last, of) where ours is a part of their rows, first to last in
    parts of that number; `axes` counts leading axes of size one that theirs has.
    """

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False
    share: tuple[int, int, int] = (0, 1, 1)
    axes: int = 0


class BlockNames(NamedTuple):
    """The parts of one block in another library, each with a weight and a bias; `qkv` has a place for these words."""

    qkv: tuple[str, ...]
    parts: Mapping[str, str]


BOTH = ("weight", "bias")

OPEN_CLIP_BLOCK = BlockNames(
    ("attn.in_proj_{}",),
    {
        "norm_1": "ln_1",
        "attention.out": "attn.out_proj",
        "norm_2": "ln_2",
        "mlp.0": "mlp.c_fc",
        "mlp.2": "mlp.c_proj",
    },
)
HUGGING_FACE_BLOCK = BlockNames(
    ("self_attn.q_proj.{}", "self_attn.k_proj.{}", "self_attn.v_proj.{}"),
    {
        "norm_1": "layer_norm1",
        "attention.out": "self_attn.out_proj",
        "norm_2": "layer_norm2",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
    },
)
TIMM_BLOCK = BlockNames(
    ("attn.qkv.{}",),
    {"norm_1": "norm1", "attention.out": "attn.proj", "norm_2": "norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"},
)

OPEN_CLIP_IMAGE = {
    "image.class_token": "visual.class_embedding",
    "image.positions": "visual.positional_embedding",
    "image.patches.weight": "visual.conv1.weight",
    "image.norm_pre.weight": "visual.ln_pre.weight",
    "image.norm_pre.bias": "visual.ln_pre.bias",
    "image.norm_post.weight": "visual.ln_post.weight",
    "image.norm_post.bias": "visual.ln_post.bias",
    "image.projection.weight": "visual.proj",
}
OPEN_CLIP_TEXT = {
    "text.tokens.weight": "token_embedding.weight",
    "text.positions": "positional_embedding",
    "text.norm_final.weight": "ln_final.weight",
    "text.norm_final.bias": "ln_final.bias",
    "text.projection.weight": "text_projection",
}
OPEN_CLIP_BIASED = {"text.projection.weight": "text_projection.weight", "text.projection.bias": "text_projection.bias"}
OPEN_CLIP_TRANSPOSED = frozenset({"visual.proj", "text_projection"})  # (W, D): multiplied from the right
LOGITS = {"log_logit_scale": "logit_scale", "logit_bias": "logit_bias"}

TIMM_IMAGE = {  # below `visual.`
    "image.class_token": "trunk.cls_token",
    "image.positions": "trunk.pos_embed",
    "image.patches.weight": "trunk.patch_embed.proj.weight",
    "image.patches.bias": "trunk.patch_embed.proj.bias",
    "image.norm_pre.weight": "trunk.norm_pre.weight",
    "image.norm_pre.bias": "trunk.norm_pre.bias",
    "image.norm_post.weight": "trunk.norm.weight",
    "image.norm_post.bias": "trunk.norm.bias",
    "image.attention_pool.probe": "trunk.attn_pool.latent",
    "image.attention_pool.query.weight": "trunk.attn_pool.q.weight",
    "image.attention_pool.query.bias": "trunk.attn_pool.q.bias",
    "image.attention_pool.key_value.weight": "trunk.attn_pool.kv.weight",
    "image.attention_pool.key_value.bias": "trunk.attn_pool.kv.bias",
    "image.attention_pool.out.weight": "trunk.attn_pool.proj.weight",
    "image.attention_pool.out.bias": "trunk.attn_pool.proj.bias",
    "image.attention_pool.norm.weight": "trunk.attn_pool.norm.weight",
    "image.attention_pool.norm.bias": "trunk.attn_pool.norm.bias",
    "image.attention_pool.mlp.0.weight": "trunk.attn_pool.mlp.fc1.weight",
    "image.attention_pool.mlp.0.bias": "trunk.attn_pool.mlp.fc1.bias",
    "image.attention_pool.mlp.2.weight": "trunk.attn_pool.mlp.fc2.weight",
    "image.attention_pool.mlp.2.bias": "trunk.attn_pool.mlp.fc2.bias",
    "image.projection.weight": "trunk.head.weight",
    "image.projection.bias": "trunk.head.bias",
}
TIMM_AXES = {"image.class_token": 2, "image.positions": 1, "image.attention_pool.probe": 2}

HUGGING_FACE = {
    "image.class_token": "vision_model.embeddings.class_embedding",
    "image.positions": "vision_model.embeddings.position_embedding.weight",
    "image.patches.weight": "vision_model.embeddings.patch_embedding.weight",
    "image.norm_pre.weight": "vision_model.pre_layrnorm.weight",
    "image.norm_pre.bias": "vision_model.pre_layrnorm.bias",
    "image.norm_post.weight": "vision_model.post_layernorm.weight",
    "image.norm_post.bias": "vision_model.post_layernorm.bias",
    "image.projection.weight": "visual_projection.weight",
    "text.tokens.weight": "text_model.embeddings.token_embedding.weight",
    "text.positions": "text_model.embeddings.position_embedding.weight",
    "text.norm_final.weight": "text_model.final_layer_norm.weight",
    "text.norm_final.bias": "text_model.final_layer_norm.bias",
    "text.projection.weight": "text_projection.weight",
} | LOGITS

SIGLIP = HUGGING_FACE | {
    "image.patches.bias": "vision_model.embeddings.patch_embedding.bias",
    "image.attention_pool.probe": "vision_model.head.probe",
    "image.attention_pool.query.weight": "vision_model.head.attention.in_proj_weight",
    "image.attention_pool.query.bias": "vision_model.head.attention.in_proj_bias",
    "image.attention_pool.key_value.weight": "vision_model.head.attention.in_proj_weight",
    "image.attention_pool.key_value.bias": "vision_model.head.attention.in_proj_bias",
    "image.attention_pool.out.weight": "vision_model.head.attention.out_proj.weight",
    "image.attention_pool.out.bias": "vision_model.head.attention.out_proj.bias",
    "image.attention_pool.norm.weight": "vision_model.head.layernorm.weight",
    "image.attention_pool.norm.bias": "vision_model.head.layernorm.bias",
    "image.attention_pool.mlp.0.weight": "vision_model.head.mlp.fc1.weight",
    "image.attention_pool.mlp.0.bias": "vision_model.head.mlp.fc1.bias",
    "image.attention_pool.mlp.2.weight": "vision_model.head.mlp.fc2.weight",
    "image.attention_pool.mlp.2.bias": "vision_model.head.mlp.fc2.bias",
    "text.projection.weight": "text_model.head.weight",
    "text.projection.bias": "text_model.head.bias",
}
SIGLIP_AXES = {"image.attention_pool.probe": 2, "log_logit_scale": 1, "logit_bias": 1}
SIGLIP_SHARES = {  # of one matrix for query, key and value
    "image.attention_pool.query.weight": (0, 1, 3),
    "image.attention_pool.query.bias": (0, 1, 3),
    "image.attention_pool.key_value.weight": (1, 3, 3),
    "image.attention_pool.key_value.bias": (1, 3, 3),
}

# Buffers that these libraries store beside the weights: masks, counters, sizes.
NOT_WEIGHTS = ("attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size")


def open_clip_rows(config: ClipConfig, *, text_prefix: str = "", trunk: bool = False) -> list[Row]:
    """The weight map of a network in OpenAI's and open_clip's names.

    Args:
        text_prefix: `text.` where open_clip keeps the text tower as a module of its own.
        trunk: the image tower is a Vision Transformer of timm, and one of ours.
    """
    rows = _named(config, LOGITS)
    rows += _of_library(config, "text") or _open_clip_text(config, text_prefix)
    return rows + (_of_library(config, "image") or _open_clip_image(config, trunk=trunk))


def _of_library(config: ClipConfig, side: Side) -> list[Row]:
    """Of a tower that another library builds, whose names are open_clip's below its own; [] for a tower of ours."""
    if not isinstance(config.image if side == "image" else config.text, LIBRARY_TOWERS):
        return []
    above = {"image": "visual", "text": "text"}[side]
    names = (name.removeprefix(f"{side}.") for name in shapes_of(config) if name.startswith(f"{side}."))
    return [Row(f"{side}.{name}", (f"{above}.{name}",)) for name in names]


def _open_clip_text(config: ClipConfig, prefix: str) -> list[Row]:
    names = OPEN_CLIP_TEXT | (OPEN_CLIP_BIASED if config.own_text.projection_bias else {})
    rows = _named(config, names) + _blocks("text", config.own_text.layers, "transformer.resblocks", OPEN_CLIP_BLOCK)
    return [_prefixed(row, prefix) for row in rows]


def _open_clip_image(config: ClipConfig, *, trunk: bool) -> list[Row]:
    layers = config.own_image.layers
    if not trunk:
        return _named(config, OPEN_CLIP_IMAGE) + _blocks(
            "image", layers, "visual.transformer.resblocks", OPEN_CLIP_BLOCK
        )
    names = dict(TIMM_IMAGE)
    if not config.own_image.projection_bias:
        names["image.projection.weight"] = "head.proj.weight"
    rows = _named(config, names, TIMM_AXES) + _blocks("image", layers, "trunk.blocks", TIMM_BLOCK)
    return [_prefixed(row, "visual.") for row in rows]


def hugging_face_rows(config: ClipConfig) -> list[Row]:
    """The weight map of a network in the names of transformers' CLIPModel; with attention pooling, of SiglipModel."""
    if config.own_image.attention_pooling is not None:
        rows = _named(config, SIGLIP, SIGLIP_AXES, SIGLIP_SHARES)
    else:
        rows = _named(config, HUGGING_FACE)
    rows += _blocks("image", config.own_image.layers, "vision_model.encoder.layers", HUGGING_FACE_BLOCK)
    rows += _blocks("text", config.own_text.layers, "text_model.encoder.layers", HUGGING_FACE_BLOCK)
    return rows


def shapes_of(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of our weights, by name."""
    return _shapes_of(config.model_dump_json())  # some towers hold a dictionary, which cannot be hashed


@lru_cache(maxsize=4)
def _shapes_of(described: str) -> dict[str, tuple[int, ...]]:
    config = ClipConfig.model_validate_json(described)
    own = isinstance(config.image, ImageTower) and isinstance(config.text, TextTower)
    with nullcontext() if own else torch.device("meta"):  # other libraries write into what they allocate
        return {name: tuple(value.shape) for name, value in uninitialised_clip(config).state_dict().items()}


def _named(
    config: ClipConfig,
    names: Mapping[str, str],
    axes: Mapping[str, int] | None = None,
    shares: Mapping[str, tuple[int, int, int]] | None = None,
) -> list[Row]:
    """Rows of those names that the network has."""
    have = shapes_of(config)
    return [
        Row(
            ours,
            (theirs,),
            theirs in OPEN_CLIP_TRANSPOSED,
            (shares or {}).get(ours, (0, 1, 1)),
            (axes or {}).get(ours, 0),
        )
        for ours, theirs in names.items()
        if ours in have
    ]


def _blocks(tower: str, layers: int, theirs: str, names: BlockNames) -> list[Row]:
    rows = []
    for layer in range(layers):
        ours, prefix = f"{tower}.blocks.{layer}", f"{theirs}.{layer}"
        for part in BOTH:
            rows.append(
                Row(f"{ours}.attention.qkv.{part}", tuple(f"{prefix}.{name.format(part)}" for name in names.qkv))
            )
            for our_name, their_name in names.parts.items():
                rows.append(Row(f"{ours}.{our_name}.{part}", (f"{prefix}.{their_name}.{part}",)))
    return rows


def _prefixed(row: Row, prefix: str) -> Row:
    return row._replace(theirs=tuple(prefix + name for name in row.theirs))
