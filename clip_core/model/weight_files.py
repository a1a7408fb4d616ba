"""Weight files: which tensors they hold, read one at a time, with nothing executed.

Supported are safetensors, the files of torch.save, TorchScript archives (whose code is ignored), and an index
(`*.index.json`) of several such files. Opening reads the list of tensors only; each tensor is then read into memory of
its own, so that loading takes little more memory than the result.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clip_core.errors import CheckpointError
from clip_core.files import load_json, open_regular
from clip_core.model.not_weights import HEAD, invalid_json, refuse_not_weights
from clip_core.model.torch_files import ZIP_START, StoredTensor, open_torch_save, zip_records
from clip_core.model.torchscript import is_torchscript, open_torchscript
from clip_core.text import printable

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
INDEX = ".index.json"
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a weight file, or of an index of several, by name.

    `files`: those that hold tensors. `torchscript`: it is a TorchScript archive, the form in which OpenAI published
    its weights.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    torchscript: bool = False


def open_weights(path: Path) -> WeightFile:
    """The list of tensors of a weight file, or of an index of several.

    Raises:
        CheckpointError: if it is missing, damaged, cut short, or asks for code to be run.
    """
    if path.name.endswith(INDEX):
        return _open_index(path)
    try:
        with open_regular(path) as handle:
            start = handle.read(HEAD)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    pickled = start[:4] == ZIP_START or (start[:1] == b"\x80" and start[8:9] != b"{")
    if not pickled and start[8:9] != b"{":
        refuse_not_weights(path, start)
    if path.suffix == ".safetensors":
        if pickled:
            raise CheckpointError(
                f"{path} is a pickle named like a safetensors file, and nothing of it was read; "
                "rename it to .pt to read it as one."
            )
        return WeightFile(path, (path,), open_safetensors(path))
    if not pickled:
        if start[8:9] == b"{":
            return WeightFile(path, (path,), open_safetensors(path))
        raise CheckpointError(f"{path} is neither a PyTorch nor a safetensors file.")
    records = zip_records(path) if start[:4] == ZIP_START else None
    if records is not None and is_torchscript(records):
        return WeightFile(path, (path,), open_torchscript(path, records), torchscript=True)
    return WeightFile(path, (path,), open_torch_save(path, records))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weight file or an index by its name there, in its stored dtype.

    Raises:
        CheckpointError: if it is missing, damaged, cut short, or asks for code to be run.
    """
    return {name: stored.read() for name, stored in open_weights(path).tensors.items()}


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: if its header is damaged, inconsistent, or has a dtype that PyTorch does not.
    """
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            known = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _invalid(path, error) from None
    tensors = {}
    for name, (shape, dtype) in known.items():
        stored = _DTYPES.get(dtype, torch.float32)  # one that PyTorch lacks is refused when it is read
        tensors[name] = StoredTensor(shape, partial(_read_safetensor, path, name), stored)
    return tensors


def _read_safetensor(path: Path, name: str) -> Tensor:
    """One tensor, copied out of a mapping of its own: with one mapping for all, loading took twice the memory."""
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name).clone()
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise _invalid(path, error) from None
    return tensor


def _invalid(path: Path, error: Exception) -> CheckpointError:
    reason = printable(str(error).partition("\n")[0], 120)
    return CheckpointError(f"{path} is cut short, or has a damaged or inconsistent safetensors header ({reason}).")


def _open_index(index: Path) -> WeightFile:
    """The tensors of the files beside an index; a file outside its folder is refused."""
    try:
        where = load_json(index)["weight_map"]
        names = {str(tensor): str(file) for tensor, file in where.items()}
    except (OSError, ValueError) as error:
        raise invalid_json(index, error) from None
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = printable(str(error), 80)
        raise CheckpointError(f"{index} is not an index of weight files ({type(error).__name__}: {reason}).") from None
    tensors: dict[str, StoredTensor] = {}
    files = []
    for file in sorted(set(names.values())):
        if file != Path(file).name or file in ("", ".", "..") or "\\" in file:
            raise CheckpointError(
                f"{index} names {printable(file, 80)!r}, a file outside its folder; nothing of it was read."
            )
        shard = index.with_name(file)
        if file.endswith(INDEX):
            raise CheckpointError(f"{index} names another index, {printable(file, 80)!r}, in place of a weight file.")
        if not shard.is_file():
            raise CheckpointError(
                f"{index.with_name(printable(file, 80))} is missing: {index.name} lists weights in it; download it too."
            )
        files.append(shard)
        tensors |= open_weights(shard).tensors
    absent = sorted(names.keys() - tensors.keys())
    if absent:
        listed = printable(", ".join(absent[:5]), 200)
        raise CheckpointError(f"{index} lists tensors that its files do not hold: {listed}.")
    return WeightFile(index, tuple(files), tensors)
