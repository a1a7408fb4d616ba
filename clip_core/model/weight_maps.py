"""What each weight is called here, by OpenAI and open_clip, and by Hugging Face: tables, read in both directions.

Shapes: W width, D embedding.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from clip_core.network import ClipConfig


class Row(NamedTuple):
    """One weight of ours, and what another library calls it.

    `theirs` are several names where their parts, joined along the rows, are our one (query, key, value);
    `transposed` where theirs multiplies from the other side.
    """

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False


BOTH = ("weight", "bias")

# Parts of one block, each with a weight and a bias; query, key and value are told apart in `_blocks`.
OPEN_CLIP_BLOCK = {
    "norm_1": "ln_1",
    "attention.out": "attn.out_proj",
    "norm_2": "ln_2",
    "mlp.0": "mlp.c_fc",
    "mlp.2": "mlp.c_proj",
}
HUGGING_FACE_BLOCK = {
    "norm_1": "layer_norm1",
    "attention.out": "self_attn.out_proj",
    "norm_2": "layer_norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
HUGGING_FACE_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

OPEN_CLIP = {
    "image.class_token": "visual.class_embedding",
    "image.positions": "visual.positional_embedding",
    "image.patches.weight": "visual.conv1.weight",
    "image.norm_pre.weight": "visual.ln_pre.weight",
    "image.norm_pre.bias": "visual.ln_pre.bias",
    "image.norm_post.weight": "visual.ln_post.weight",
    "image.norm_post.bias": "visual.ln_post.bias",
    "image.projection.weight": "visual.proj",
    "text.tokens.weight": "token_embedding.weight",
    "text.positions": "positional_embedding",
    "text.norm_final.weight": "ln_final.weight",
    "text.norm_final.bias": "ln_final.bias",
    "text.projection.weight": "text_projection",
    "log_logit_scale": "logit_scale",
}
OPEN_CLIP_BIASED = {"text.projection.weight": "text_projection.weight", "text.projection.bias": "text_projection.bias"}
OPEN_CLIP_LOGIT_BIAS = {"logit_bias": "logit_bias"}
OPEN_CLIP_TRANSPOSED = frozenset({"visual.proj", "text_projection"})  # (W, D): multiplied from the right

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
    "log_logit_scale": "logit_scale",
}

# What these libraries store beside the weights and their models do not need: masks, counters, sizes.
NOT_WEIGHTS = ("attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size", "num_batches_tracked")


def open_clip_rows(config: ClipConfig, *, text_prefix: str = "") -> list[Row]:
    """The table of a network in OpenAI's and open_clip's names.

    Args:
        text_prefix: `text.` where open_clip keeps the text tower as a module of its own.
    """
    names = OPEN_CLIP | (OPEN_CLIP_BIASED if config.text.projection_bias else {})
    names |= OPEN_CLIP_LOGIT_BIAS if config.logit_bias else {}
    if not config.image.pre_norm:
        names = {ours: theirs for ours, theirs in names.items() if not ours.startswith("image.norm_pre.")}
    rows = [Row(ours, (theirs,), theirs in OPEN_CLIP_TRANSPOSED) for ours, theirs in names.items()]
    rows += _blocks("image", config.image.layers, "visual.transformer.resblocks", OPEN_CLIP_BLOCK)
    rows += _blocks("text", config.text.layers, "transformer.resblocks", OPEN_CLIP_BLOCK)
    return [_prefixed(row, text_prefix) if row.ours.startswith("text.") else row for row in rows]


def hugging_face_rows(config: ClipConfig) -> list[Row]:
    """The table of a network in the names of transformers' CLIPModel."""
    rows = [Row(ours, (theirs,)) for ours, theirs in HUGGING_FACE.items()]
    rows += _blocks("image", config.image.layers, "vision_model.encoder.layers", HUGGING_FACE_BLOCK)
    rows += _blocks("text", config.text.layers, "text_model.encoder.layers", HUGGING_FACE_BLOCK)
    return rows


def to_open_clip(weights: Mapping[str, Tensor], config: ClipConfig) -> dict[str, Tensor]:
    """Our state dict in open_clip's names, bit for bit."""
    return dict(_written(open_clip_rows(config), weights))


def to_hugging_face(weights: Mapping[str, Tensor], config: ClipConfig) -> dict[str, Tensor]:
    """Our state dict in the names of transformers' CLIPModel, bit for bit."""
    return dict(_written(hugging_face_rows(config), weights))


def _written(rows: list[Row], weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for row in rows:
        whole = weights[row.ours].t() if row.transposed else weights[row.ours]
        parts = whole.chunk(len(row.theirs)) if len(row.theirs) > 1 else (whole,)
        yield from zip(row.theirs, (part.contiguous() for part in parts), strict=True)


def _blocks(tower: str, layers: int, theirs: str, names: Mapping[str, str]) -> Iterator[Row]:
    for layer in range(layers):
        ours, prefix = f"{tower}.blocks.{layer}", f"{theirs}.{layer}"
        for part in BOTH:
            qkv = (
                (f"{prefix}.attn.in_proj_{part}",)
                if names is OPEN_CLIP_BLOCK
                else tuple(f"{prefix}.{name}.{part}" for name in HUGGING_FACE_QKV)
            )
            yield Row(f"{ours}.attention.qkv.{part}", qkv)
            for our_name, their_name in names.items():
                yield Row(f"{ours}.{our_name}.{part}", (f"{prefix}.{their_name}.{part}",))


def _prefixed(row: Row, prefix: str) -> Row:
    return row._replace(theirs=tuple(prefix + name for name in row.theirs))
