"""Weights of other libraries checked, read and written by the maps of weight_names.py.

Shapes: W width, D embedding.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from clip_core.errors import CheckpointError
from clip_core.model.torch_files import StoredTensor
from clip_core.model.weight_names import Row, hugging_face_rows, open_clip_rows, shapes_of
from clip_core.network import LIBRARY_TOWERS, ClipConfig, ImageTower
from clip_core.text import printable

# ---------------------------------------------------------------- writing


def to_open_clip(weights: Mapping[str, Tensor], config: ClipConfig) -> dict[str, Tensor]:
    """Our state dict in open_clip's names; values are unchanged.

    A network with attention pooling, or a tower of another library, has a text tower as a module of its own there.
    """
    image = config.image
    trunk = isinstance(image, ImageTower) and image.attention_pooling is not None
    custom = trunk or isinstance(image, LIBRARY_TOWERS)
    return _written(open_clip_rows(config, text_prefix="text." if custom else "", trunk=trunk), weights)


def to_hugging_face(weights: Mapping[str, Tensor], config: ClipConfig) -> dict[str, Tensor]:
    """Our state dict in the names of transformers' CLIPModel or SiglipModel; values are unchanged."""
    return _written(hugging_face_rows(config), weights)


def _written(rows: list[Row], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    for row in rows:
        whole = weights[row.ours].t() if row.transposed else weights[row.ours]
        whole = whole.reshape((1,) * row.axes + whole.shape)
        pieces = whole.chunk(len(row.theirs)) if len(row.theirs) > 1 else (whole,)
        for name, piece in zip(row.theirs, pieces, strict=True):
            parts.setdefault(name, []).append(piece)
    return {name: (found[0] if len(found) == 1 else torch.cat(found)).contiguous() for name, found in parts.items()}


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
    expected = shapes_of(config)
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
    """Our state dict, fp32 (counters as they are), read from a weight file one tensor at a time.

    Raises:
        CheckpointError: naming weights that are not finite.
    """
    kept, bad = {}, []
    for name, value in _one_by_one(rows, tensors, shapes_of(config)):
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
            whole = tensors[row.theirs[0]].read()
            whole = whole.to(torch.float32) if whole.is_floating_point() else whole
            whole = whole.t().contiguous() if row.transposed else whole
            if row.share[2] > 1:
                first, last, of = row.share
                whole = whole[len(whole) * first // of : len(whole) * last // of].clone()
        else:
            whole = torch.empty(shapes[row.ours])
            for name, part in zip(row.theirs, whole.chunk(len(row.theirs)), strict=True):
                part.copy_(tensors[name].read())
        yield row.ours, whole.reshape(shapes[row.ours])


def _joined(row: Row, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of our weight, from the shapes of its parts."""
    first = shapes[0]
    if row.transposed:
        return first[::-1]
    if row.share[2] > 1 and first:
        start, end, of = row.share
        return (first[0] * (end - start) // of, *first[1:])
    return (sum(shape[0] for shape in shapes), *first[1:]) if len(shapes) > 1 and all(shapes) else first


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of size one: a scale is stored as () or as (1,)."""
    return tuple(size for size in shape if size != 1)


def _listed(names: list[str]) -> str:
    more = len(names) - 5
    return printable(", ".join(names[:5]), 300) + (f" and {more:,} more" if more > 0 else "")
