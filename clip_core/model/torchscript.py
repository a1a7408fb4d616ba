"""TorchScript archives, the form in which OpenAI published its weights.

No library reads them safely: torch.jit.load runs their code, torch.load(weights_only=True) refuses them. Here only the
tensors are read, from the pickle that lists them; every class and function that it names is replaced by an inert one.
"""

import io
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip_core.errors import CheckpointError
from clip_core.model.pickle_check import TORCHSCRIPT, Role
from clip_core.model.torch_files import (
    DTYPES,
    MOST_TENSORS,
    Record,
    StoredTensor,
    check_storages,
    cut_short,
    endless,
    no_tensors,
    read_pickle_record,
    read_record,
)

_DEEPEST = 40  # modules inside modules


def is_torchscript(records: Mapping[str, Record]) -> bool:
    """Whether a zip archive of PyTorch holds code."""
    return any(name.startswith("code/") for name in records)


def open_torchscript(path: Path, records: Mapping[str, Record]) -> dict[str, StoredTensor]:
    """The parameters and buffers of the module in a TorchScript archive, by their dotted names.

    Raises:
        CheckpointError: if it is damaged, cut short, or asks for more than a module's code and data.
    """
    check_storages(path, read_pickle_record(path, records, torchscript=True).storages, records)
    try:
        root = _Unpickler(io.BytesIO(read_record(path, records["data.pkl"]))).load()
        tensors = {name: _stored(path, described, records) for name, described in _walk(path, root)}
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, KeyError, IndexError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged: its list of tensors is invalid ({type(error).__name__}).") from None
    if not tensors:
        raise no_tensors(path)
    return tensors


class _Module:
    """A module: its attributes, submodules among them."""

    def __init__(self, *_: Any) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


class _StorageType(NamedTuple):
    name: str

    def __call__(self, *_: Any) -> None:
        raise TypeError("a storage type is not called")


class _TensorArguments(NamedTuple):
    """What a tensor is rebuilt from; offset, shape and stride in elements."""

    storage: tuple[str, str]  # type, key
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """An unpickler that finds nothing but inert classes and functions; what it reads was checked before."""

    def find_class(self, module: str, name: str) -> Any:
        match TORCHSCRIPT.get(f"{module}.{name}"):
            case Role.DICT:
                return dict
            case Role.TENSOR:
                return lambda storage, offset, shape, stride, *_: _TensorArguments(storage, offset, shape, stride)
            case Role.FIRST | Role.PARAMETER:
                return lambda value, *_: value
            case None if module.startswith("__torch__"):
                return _Module
            case None if module == "torch":
                return _StorageType(name)
        return lambda *_: None

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, kind, key, *_ = pid
        return kind.name, key


def _walk(path: Path, root: Any) -> Iterator[tuple[str, _TensorArguments]]:
    """Every tensor below a module, by its dotted name."""
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    seen = 0
    while waiting:
        prefix, node, depth = waiting.pop()
        for name, value in (node.attributes if isinstance(node, _Module) else node).items():
            seen += 1
            if seen > MOST_TENSORS or depth > _DEEPEST:
                raise endless(path)
            if isinstance(value, _TensorArguments):
                yield f"{prefix}{name}", value
            elif isinstance(value, dict | _Module):
                waiting.append((f"{prefix}{name}.", value, depth + 1))


def _stored(path: Path, described: _TensorArguments, records: Mapping[str, Record]) -> StoredTensor:
    kind, key = described.storage
    record = records.get(f"data/{key}") or records[f"constants/{key}"]
    dtype, shape = DTYPES[kind], tuple(described.shape)
    region = _Region(path, record.offset + described.offset * dtype.itemsize, dtype, shape, tuple(described.stride))
    return StoredTensor(shape, region.read)


@dataclass(frozen=True)
class _Region:
    """The bytes of a tensor in a file, and its layout (`stride` in elements)."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        elements = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        numbers = torch.empty(elements, dtype=self.dtype)
        memory = numbers.view(torch.uint8).numpy().data
        with self.path.open("rb") as handle:
            handle.seek(self.offset)
            if handle.readinto(memory) != len(memory):
                raise cut_short(self.path)
        return numbers.as_strided(self.shape, self.stride).contiguous()
