"""PyTorch's own files: the zip archives of `torch.save` and TorchScript, and what was written before them."""

import io
import math
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from clip_core.errors import CheckpointError
from clip_core.model.pickles import ModuleRef, StorageRef, TensorRef, read_pickle
from clip_core.model.stored import Stored, cut_short

ZIP_START = b"PK\x03\x04"
LARGEST_PICKLE = 64_000_000  # bytes; the list of tensors of the largest CLIP has less than one of them
MOST_TENSORS = 100_000
DEEPEST = 40  # modules inside modules

_KINDS = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # what PyTorch wrote first before it wrote zip archives


class Place(NamedTuple):
    """Bytes of a file."""

    offset: int
    length: int


class Contents(NamedTuple):
    """What `read_torch_file` found; see `Archive`."""

    tensors: dict[str, Stored]
    scripted: bool
    nested: bool


def read_torch_file(path: Path) -> Contents:
    """The tensors that a file of PyTorch describes, without running its pickle.

    Raises:
        CheckpointError: if it is damaged, cut short, or holds anything but data.
    """
    with path.open("rb") as handle:
        zipped = handle.read(4) == ZIP_START
        handle.seek(0)
        described, places, scripted = _read_zip(path, handle) if zipped else _read_legacy(path, handle)
    nested = isinstance(described, dict) and isinstance(described.get("state_dict"), dict | ModuleRef)
    root = described["state_dict"] if nested else described
    if not isinstance(root, dict | ModuleRef):
        raise CheckpointError(f"{path} holds no dict of tensors, which weights are; it holds {_kind(root)}.")
    tensors = {name: _stored(path, name, ref, places) for name, ref in _walk(path, root)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; weights of a CLIP are a dict of them.")
    return Contents(tensors, scripted, nested)


def _walk(path: Path, root: dict[Any, Any] | ModuleRef) -> Iterator[tuple[str, TensorRef]]:
    """Every tensor below a dict or a module, by its dotted name."""
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    seen = 0
    while waiting:
        prefix, node, depth = waiting.pop()
        for name, value in (node.attributes if isinstance(node, ModuleRef) else node).items():
            seen += 1
            if seen > MOST_TENSORS or depth > DEEPEST:
                raise CheckpointError(f"{path} is refused: its list of tensors is endless, or made to look so.")
            if isinstance(value, TensorRef):
                yield f"{prefix}{name}", value
            elif isinstance(value, dict | ModuleRef):
                waiting.append((f"{prefix}{name}.", value, depth + 1))


def _stored(path: Path, name: str, ref: TensorRef, places: Mapping[str, Place]) -> Stored:
    dtype = _KINDS.get(ref.storage.kind)
    if dtype is None:
        raise CheckpointError(f"{path}: {name!r} is of a type that weights do not have ({ref.storage.kind}).")
    place = places.get(ref.storage.key)
    if place is None:
        raise CheckpointError(f"{path} is damaged: the numbers of {name!r} are not in it.")
    last = ref.offset + sum((size - 1) * step for size, step in zip(ref.shape, ref.stride, strict=True))
    room = place.length // dtype.itemsize
    elements = math.prod(ref.shape)
    if elements and (last >= room or elements > room):
        raise CheckpointError(
            f"{path} lies about {name!r}: a tensor of shape {list(ref.shape)} does not fit into {place.length:,} bytes."
        )
    return Stored(path, place.offset + ref.offset * dtype.itemsize, dtype, ref.shape, ref.stride)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


# ---------------------------------------------------------------- zip archives


def _read_zip(path: Path, handle: IO[bytes]) -> tuple[Any, dict[str, Place], bool]:
    """The described data, where each storage is, and whether it is TorchScript's."""
    try:
        with zipfile.ZipFile(handle) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if len(entries) != len(archive.infolist()):
                raise CheckpointError(f"{path} is refused: two entries of the archive have one name.")
            listed = next((name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")), None)
            if listed is None:
                raise CheckpointError(f"{path} is a zip archive, but not one of PyTorch: it has no data.pkl.")
            prefix = listed.removesuffix("data.pkl")
            pickled = _read_entry(path, archive, entries[listed])
    except (zipfile.BadZipFile, OSError, EOFError, struct.error, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is cut short or damaged: it is no whole archive ({error}).") from None
    places: dict[str, Place] = {}
    for folder in ("constants/", "data/"):  # the latter counts where a key is in both
        for name, entry in entries.items():
            if name.startswith(prefix + folder):
                places[name.removeprefix(prefix + folder)] = _place(path, handle, entry)
    scripted = any(name.startswith(f"{prefix}code/") for name in entries)
    return read_pickle(io.BytesIO(pickled), str(path)), places, scripted


def _read_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as handle:
        content = handle.read(LARGEST_PICKLE + 1)
    if len(content) > LARGEST_PICKLE:
        raise CheckpointError(f"{path} is refused: its list of tensors is larger than {LARGEST_PICKLE:,} bytes.")
    return content


def _place(path: Path, handle: IO[bytes], entry: zipfile.ZipInfo) -> Place:
    """Where the bytes of an entry are; its local header says how far behind that header."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise CheckpointError(f"{path} is refused: {entry.filename!r} is compressed, as PyTorch writes no tensor.")
    handle.seek(entry.header_offset)
    header = handle.read(30)
    if len(header) < 30 or header[:4] != ZIP_START:
        raise CheckpointError(f"{path} is damaged: {entry.filename!r} is not where the archive says.")
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    place = Place(entry.header_offset + 30 + name_length + extra_length, entry.file_size)
    if place.offset + place.length > os.fstat(handle.fileno()).st_size:
        raise cut_short(path)
    return place


# ---------------------------------------------------------------- before zip archives


def _read_legacy(path: Path, handle: IO[bytes]) -> tuple[Any, dict[str, Place], bool]:
    """Five pickles (magic number, version, system, data, keys of the storages), then the storages one by one."""
    where, end = str(path), os.fstat(handle.fileno()).st_size
    first = read_pickle(handle, where)
    if first != _LEGACY_MAGIC:
        raise CheckpointError(f"{path} is a pickle, but not one that PyTorch wrote; it holds {_kind(first)}.")
    storages: dict[str, StorageRef] = {}
    _, _, described, keys = (read_pickle(handle, where, storages) for _ in range(4))
    sizes = {key: _KINDS[ref.kind].itemsize for key, ref in storages.items() if ref.kind in _KINDS}
    places: dict[str, Place] = {}
    for key in keys if isinstance(keys, list) else []:
        written = handle.read(8)
        count = int.from_bytes(written, "little", signed=True)
        place = Place(handle.tell(), count * sizes.get(str(key), 0))
        if len(written) < 8 or count < 0 or str(key) not in sizes or place.offset + place.length > end:
            raise cut_short(path)
        places[str(key)] = place
        handle.seek(place.offset + place.length)
    return described, places, False
