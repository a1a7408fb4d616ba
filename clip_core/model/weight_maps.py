"""Weight maps: our names of weights, and those of OpenAI and open_clip, and of Hugging Face; used both ways.

Shapes: W width, D embedding.
"""

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from clip_core.errors import CheckpointError
from clip_core.model.clip import uninitialised_clip
from clip_core.model.torch_files import StoredTensor
from clip_core.network import ClipConfig
from clip_core.text import printable


class Row(NamedTuple):
    """One of our weights and its name in another library.

    `theirs` has several names where ours is their concatenation along the rows (query, key, value); `transposed` where
    theirs has the other axis first.
    """

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False


BOTH = ("weight", "bias")

# Parts of one block, each with a weight and a bias; `_blocks` adds query, key and value.
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

# Buffers that these libraries store beside the weights: masks, counters, sizes.
NOT_WEIGHTS = ("attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size", "num_batches_tracked")


def open_clip_rows(config: ClipConfig, *, text_prefix: str = "") -> list[Row]:
    """The weight map of a network in OpenAI's and open_clip's names.

    Args:
        text_prefix: `text.` where open_clip keeps the text tower as a module of its own.
    """
    names = OPEN_CLIP | (OPEN_CLIP_BIASED if config.own_text.projection_bias else {})
    names |= OPEN_CLIP_LOGIT_BIAS if config.logit_bias else {}
    if not config.own_image.pre_norm:
        names = {ours: theirs for ours, theirs in names.items() if not ours.startswith("image.norm_pre.")}
    rows = [Row(ours, (theirs,), theirs in OPEN_CLIP_TRANSPOSED) for ours, theirs in names.items()]
    rows += _blocks("image", config.own_image.layers, "visual.transformer.resblocks", OPEN_CLIP_BLOCK)
    rows += _blocks("text", config.own_text.layers, "transformer.resblocks", OPEN_CLIP_BLOCK)
    return [_prefixed(row, text_prefix) if row.ours.startswith("text.") else row for row in rows]


def hugging_face_rows(config: ClipConfig) -> list[Row]:
    """The weight map of a network in the names of transformers' CLIPModel."""
    rows = [Row(ours, (theirs,)) for ours, theirs in HUGGING_FACE.items()]
    rows += _blocks("image", config.own_image.layers, "vision_model.encoder.layers", HUGGING_FACE_BLOCK)
    rows += _blocks("text", config.own_text.layers, "text_model.encoder.layers", HUGGING_FACE_BLOCK)
    return rows


def to_open_clip(weights: Mapping[str, Tensor], config: ClipConfig) -> dict[str, Tensor]:
    """Our state dict in open_clip's names; values are unchanged."""
    return dict(_written(open_clip_rows(config), weights))


def to_hugging_face(weights: Mapping[str, Tensor], config: ClipConfig) -> dict[str, Tensor]:
    """Our state dict in the names of transformers' CLIPModel; values are unchanged."""
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


# ---------------------------------------------------------------- reading


def check_names_and_shapes(
    path: Path, where: Path | str, config: ClipConfig, rows: list[Row], tensors: Mapping[str, StoredTensor]
) -> None:
    """Every tensor of the map is there, none is unexpected, and each has the shape that `config` asks for.

    Args:
        path: the weight file, for messages.
        where: what described the network, for messages.
    Raises:
        CheckpointError: naming the tensors that differ.
    """
    needed = {name for row in rows for name in row.theirs}
    missing, extra = sorted(needed - tensors.keys()), sorted(tensors.keys() - needed)
    if missing or extra:
        parts = [f"lacks {_listed(missing)}"] if missing else []
        parts += [f"has unexpected {_listed(extra)}"] if extra else []
        raise CheckpointError(f"{path} does not match {where}: it {' and '.join(parts)}.")
    expected = _shapes(config)
    for row in rows:
        found = _joined(row, [tensors[name].shape for name in row.theirs])
        if _squeezed(found) != _squeezed(expected[row.ours]):
            theirs = f"{row.theirs[0]} has the shape {list(tensors[row.theirs[0]].shape)}"
            raise CheckpointError(
                f"{path} does not match {where}: {theirs}, where {list(expected[row.ours])} is expected for {row.ours}."
            )


def read_weights(
    path: Path, config: ClipConfig, rows: list[Row], tensors: Mapping[str, StoredTensor]
) -> dict[str, Tensor]:
    """Our state dict, fp32, read from a weight file one tensor at a time.

    Raises:
        CheckpointError: naming weights that are not finite.
    """
    kept, bad = {}, []
    for name, value in _one_by_one(rows, tensors, _shapes(config)):
        kept[name] = value
        if not all(math.isfinite(float(edge)) for edge in torch.aminmax(value)):
            bad.append(name)
    if bad:
        raise CheckpointError(f"{path} has values that are not finite in {_listed(bad)}.")
    return kept


def _one_by_one(
    rows: list[Row], tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    """Our weights, one at a time; parts are copied into their place, so that no whole is in memory twice."""
    for row in rows:
        if len(row.theirs) == 1:
            whole = tensors[row.theirs[0]].read().to(torch.float32)
            whole = whole.t().contiguous() if row.transposed else whole
        else:
            whole = torch.empty(shapes[row.ours])
            for name, part in zip(row.theirs, whole.chunk(len(row.theirs)), strict=True):
                part.copy_(tensors[name].read())
        yield row.ours, whole.reshape(shapes[row.ours])


@lru_cache(maxsize=4)
def _shapes(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in uninitialised_clip(config).state_dict().items()}


def _joined(row: Row, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of our weight, from the shapes of its parts."""
    first = shapes[0]
    if row.transposed:
        return first[::-1]
    return (sum(shape[0] for shape in shapes), *first[1:]) if len(shapes) > 1 and all(shapes) else first


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of size one: a scale is stored as () or as (1,)."""
    return tuple(size for size in shape if size != 1)


def _listed(names: list[str]) -> str:
    more = len(names) - 5
    return printable(", ".join(names[:5]), 300) + (f" and {more:,} more" if more > 0 else "")
