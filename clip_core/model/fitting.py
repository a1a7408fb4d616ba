"""Whether the tensors of a file are those of a network, and reading them into it."""

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from clip_core.errors import CheckpointError
from clip_core.model.torch_files import StoredTensor
from clip_core.model.unfilled import unfilled_clip
from clip_core.model.weight_maps import Row
from clip_core.network import ClipConfig

Tensors = Mapping[str, StoredTensor]


def check_fit(path: Path, where: Path | str, config: ClipConfig, rows: list[Row], tensors: Tensors) -> None:
    """Every tensor that is needed is there, none is left over, and each has the shape that the identity says.

    Args:
        where: what described the network, for the message.
    Raises:
        CheckpointError: naming the tensors.
    """
    needed = {name for row in rows for name in row.theirs}
    missing, extra = sorted(needed - tensors.keys()), sorted(tensors.keys() - needed)
    if missing or extra:
        parts = [f"lacks {_listed(missing)}"] if missing else []
        parts += [f"has left over {_listed(extra)}"] if extra else []
        raise CheckpointError(f"{path} is not the network that {where} describes: it {' and '.join(parts)}.")
    expected = _shapes(config)
    for row in rows:
        found = _joined(row, [tensors[name].shape for name in row.theirs])
        if _squeezed(found) != _squeezed(expected[row.ours]):
            theirs = f"{row.theirs[0]} has the shape {list(tensors[row.theirs[0]].shape)}"
            raise CheckpointError(
                f"{path} disagrees with {where}: {theirs}, and the network described needs "
                f"{list(expected[row.ours])} for {row.ours}."
            )


def read_weights(path: Path, config: ClipConfig, rows: list[Row], tensors: Tensors) -> dict[str, Tensor]:
    """All weights under our names, fp32, once none of them holds a NaN or an infinity.

    Raises:
        CheckpointError: naming those that are not finite.
    """
    kept, bad = {}, []
    for name, value in _one_by_one(rows, tensors, _shapes(config)):
        kept[name] = value
        if not all(math.isfinite(float(edge)) for edge in torch.aminmax(value)):
            bad.append(name)
    if bad:
        raise CheckpointError(f"{path} holds values that are not finite in {_listed(bad)}; it cannot be used.")
    return kept


def _one_by_one(
    rows: list[Row], tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    """Each weight as it is needed; parts are read straight into their place, so that nothing large is there twice."""
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
    return {name: tuple(value.shape) for name, value in unfilled_clip(config).state_dict().items()}


def _joined(row: Row, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of our weight from those of its parts."""
    first = shapes[0]
    if row.transposed:
        return first[::-1]
    return (sum(shape[0] for shape in shapes), *first[1:]) if len(shapes) > 1 and all(shapes) else first


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of one: a scale is stored as () and as (1,)."""
    return tuple(size for size in shape if size != 1)


def _listed(names: list[str]) -> str:
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more:,} more" if more > 0 else "")
