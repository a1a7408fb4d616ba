"""Files of weights as they are found: which tensors are in them, read one at a time, with nothing executed.

Known are safetensors, PyTorch's zip archives (`torch.save`, and TorchScript's, whose code is left alone), PyTorch's
older files without zip, and folders whose index shares the tensors out over several files. Only the list of tensors
is read at first; each tensor is then read straight into its own memory, so that loading needs no second copy.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_core.errors import CheckpointError
from clip_core.model.stored import Stored, cut_short, row_major
from clip_core.model.torch_files import ZIP_START, read_torch_file

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
INDEX = ".index.json"
LARGEST_HEADER = 100_000_000  # bytes; the safetensors library allows no more

_SAFETENSORS_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Archive:
    """The tensors of a file or folder by name.

    `scripted`: it is a TorchScript archive, the form that OpenAI published its weights in; `nested`: the tensors were
    one entry of a training checkpoint.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Stored]
    scripted: bool = False
    nested: bool = False


def open_archive(path: Path) -> Archive:
    """The list of tensors of a weight file, or of an index (`*.index.json`) of several.

    Raises:
        CheckpointError: if it is missing, damaged, cut short, or asks for code to be run.
    """
    if path.name.endswith(INDEX):
        return _sharded(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            start = handle.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    pickled = start[:4] == ZIP_START or (start[:1] == b"\x80" and start[8:9] != b"{")
    if path.suffix == ".safetensors":
        if pickled:
            raise CheckpointError(
                f"{path} is no safetensors file but a pickle with that name, and none of it was read; "
                "if it is what you want, give it its own name back (.pt)."
            )
        return Archive(path, (path,), read_safetensors(path, size))
    if not pickled:
        if start[8:9] == b"{":
            return Archive(path, (path,), read_safetensors(path, size))
        raise CheckpointError(f"{path} holds no weights that are known here: neither PyTorch's nor safetensors.")
    tensors, scripted, nested = read_torch_file(path)
    return Archive(path, (path,), tensors, scripted, nested)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weight file or an index, by the name that it has there; types as they are stored.

    Raises:
        CheckpointError: if it is missing, damaged, cut short, or asks for code to be run.
    """
    return {name: stored.read() for name, stored in open_archive(path).tensors.items()}


def read_safetensors(path: Path, size: int) -> dict[str, Stored]:
    """The tensors that the header of a safetensors file lists, after checking that they are there.

    Raises:
        CheckpointError: if the header is damaged, or says what cannot be.
    """
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            raise CheckpointError(
                f"{path} is cut short or no safetensors file: its header would be {length:,} bytes long, "
                f"and the file has {size:,}."
            )
        raw = handle.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_without_repetition)
        header.pop("__metadata__", None)
        tensors = {name: _stored(path, 8 + length, facts) for name, facts in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged safetensors header ({_plain(error)}).") from None
    end = 8 + length
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].offset, _bytes(item[1]))):
        if stored.offset != end:
            raise CheckpointError(f"{path} has a safetensors header that lies: {name!r} does not begin where it can.")
        end += _bytes(stored)
    if end > size:
        raise cut_short(path)
    if end < size:
        raise CheckpointError(f"{path} has {size - end:,} bytes more than its safetensors header lists.")
    return tensors


def _stored(path: Path, start: int, facts: dict[str, Any]) -> Stored:
    shape = tuple(facts["shape"])
    begin, end = facts["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError("a size that is no number")
    if facts["dtype"] not in _SAFETENSORS_TYPES:
        raise ValueError(f"numbers of type {facts['dtype']!r:.20}")
    stored = Stored(path, start + begin, _SAFETENSORS_TYPES[facts["dtype"]], shape, row_major(shape))
    if end - begin != _bytes(stored):
        raise ValueError(f"a tensor of shape {list(shape)} in {end - begin} bytes")
    return stored


def _bytes(stored: Stored) -> int:
    return math.prod(stored.shape) * stored.dtype.itemsize


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _plain(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else type(error).__name__


def _sharded(index: Path) -> Archive:
    """The tensors of the files beside an index; a name that leads elsewhere is refused."""
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(tensor): str(file) for tensor, file in where.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of weight files ({_plain(error)}).") from None
    tensors: dict[str, Stored] = {}
    files = []
    for file in sorted(set(names.values())):
        if file != Path(file).name or file in ("", ".", "..") or "\\" in file:
            raise CheckpointError(f"{index} names {file!r}, a file outside its folder; nothing of it was read.")
        shard = index.with_name(file)
        if file.endswith(INDEX):
            raise CheckpointError(f"{index} names another index, {file!r}, where a weight file should be.")
        if not shard.is_file():
            raise CheckpointError(f"{shard} is missing: {index.name} says that weights are in it; download it too.")
        files.append(shard)
        tensors |= open_archive(shard).tensors
    absent = sorted(names.keys() - tensors.keys())
    if absent:
        raise CheckpointError(f"{index} lists tensors that its files do not hold: {', '.join(absent[:5])}.")
    return Archive(index, tuple(files), tensors)
