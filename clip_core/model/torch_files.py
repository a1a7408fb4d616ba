"""Files of torch.save, zip archives and those of PyTorch before 1.6, read tensor by tensor; nothing is unpickled."""

import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from clip_core.errors import CheckpointError
from clip_core.model.pickle_check import LARGEST_PICKLE, check_pickle, whole_model
from clip_core.model.pickle_values import Checked, Layout, Made, Storage
from clip_core.text import printable

ZIP_START = b"PK\x03\x04"
MOST_TENSORS = 100_000
DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_DEEPEST = 40  # dicts inside dicts
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file before zip archives


class StoredTensor(NamedTuple):
    """A tensor that is still in its file; `read` gives it contiguous, in memory of its own."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    dtype: torch.dtype = torch.float32


class Record(NamedTuple):
    """An entry of a zip archive: where its bytes are in the file."""

    offset: int
    length: int


def open_torch_save(path: Path, records: Mapping[str, Record] | None) -> dict[str, StoredTensor]:
    """The tensors of a file of torch.save by their dotted names.

    Args:
        records: of a zip archive, from `zip_records`; None for a file of PyTorch before 1.6.
    Raises:
        CheckpointError: if it is damaged, cut short, or holds anything but data.
    """
    if records is None:
        root, places = _check_legacy(path)
    else:
        checked = read_pickle_record(path, records)
        root, places = checked.value, check_storages(path, checked.storages, records)
    if not isinstance(root, Made) or root.kind != "dict":
        raise not_a_state_dict(path, root)
    return stored_tensors(path, root, places)


def stored_tensors(path: Path, root: Made, places: Mapping[str, Record]) -> dict[str, StoredTensor]:
    """The tensors below a dict or a module of a checked pickle, by their dotted names.

    Args:
        places: of the storages, by their keys.
    Raises:
        CheckpointError: if there are none, the dicts have no end, or a tensor is outside of its storage.
    """
    tensors = {name: _stored(path, layout, places) for name, layout in _walk(path, root)}
    if not tensors:
        inside = next(
            (each for each in root.entries.values() if isinstance(each, Made) and each.kind == "object"), None
        )
        raise no_tensors(path) if inside is None else whole_model(str(path), inside.named)
    return tensors


def _walk(path: Path, root: Made) -> Iterator[tuple[str, Layout]]:
    """Every tensor below a dict or a module, by its dotted name."""
    waiting: list[tuple[str, Made, int]] = [("", root, 0)]
    seen = 0
    while waiting:
        prefix, node, depth = waiting.pop()
        for name, value in node.entries.items():
            seen += 1
            if seen > MOST_TENSORS or depth > _DEEPEST:
                raise endless(path)
            if isinstance(value, Made) and value.layout is not None:
                yield f"{prefix}{name}", value.layout
            elif isinstance(value, Made) and value.kind in ("dict", "module"):
                waiting.append((f"{prefix}{name}.", value, depth + 1))


def _stored(path: Path, layout: Layout, places: Mapping[str, Record]) -> StoredTensor:
    dtype = _dtype(path, layout)
    record, size = places[layout.storage.key], dtype.itemsize
    last = sum((side - 1) * step for side, step in zip(layout.shape, layout.stride, strict=True))
    if math.prod(layout.shape) and (layout.offset + last + 1) * size > record.length:
        raise CheckpointError(f"{path} is inconsistent: a tensor does not fit into {record.length:,} bytes.")
    region = _Region(path, record.offset + layout.offset * size, dtype, layout.shape, layout.stride)
    return StoredTensor(layout.shape, region.read, dtype)


def _dtype(path: Path, layout: Layout) -> torch.dtype:
    named = layout.dtype or layout.storage.kind
    dtype = getattr(torch, named, None) if layout.dtype else DTYPES.get(named)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{path} has tensors of a type that weights do not have ({printable(named, 40)}).")
    return dtype


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


# ---------------------------------------------------------------- what is wrong, also for TorchScript archives


def not_a_state_dict(path: Path, found: Any) -> CheckpointError:
    if isinstance(found, Made) and found.kind == "object":
        return whole_model(str(path), found.named)
    kind = found.kind if isinstance(found, Made) else type(found).__name__
    return CheckpointError(f"{path} holds a {kind} in place of a state dict, a dict of tensors.")


def no_tensors(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} holds no tensors; weights of a CLIP are a dict of tensors.")


def endless(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is refused: its dicts are nested without end, or hold over {MOST_TENSORS:,} items.")


def cut_short(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is cut short: it ends before its last tensor; copy or download it again.")


# ---------------------------------------------------------------- zip archives


def zip_records(path: Path) -> dict[str, Record]:
    """Where the entries of a zip archive of PyTorch are, by their names without the first folder.

    Entries must not be compressed (so none unpacks to more than it takes in the file), have unique names, lie inside
    the file, and be where PyTorch's own reader finds them.

    Raises:
        CheckpointError: if that is not so.
    """
    try:
        with path.open("rb") as handle, zipfile.ZipFile(handle) as archive:
            entries = archive.infolist()
            places = {entry.filename: _place(path, handle, entry) for entry in entries}
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        struct.error,
        RuntimeError,
        ValueError,
    ) as error:
        reason = printable(str(error), 80)
        raise CheckpointError(f"{path} is cut short or damaged: it is no complete zip archive ({reason}).") from None
    if len(places) != len(entries):
        raise CheckpointError(f"{path} is refused: two entries of the archive have the same name.")
    folder = next((name.partition("/")[0] for name in places), "") + "/"
    if f"{folder}data.pkl" not in places or not all(name.startswith(folder) for name in places):
        raise CheckpointError(f"{path} is a zip archive, but not one of PyTorch: it has no data.pkl.")
    records = {name.removeprefix(folder): place for name, place in places.items()}
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        offset = reader.get_record_offset  # type: ignore[attr-defined]  # missing from PyTorch's stubs
        agree = all(offset(name) == place.offset for name, place in records.items())
    except RuntimeError as error:
        reason = printable(str(error).partition("\n")[0], 80)
        raise CheckpointError(f"{path} is damaged: PyTorch cannot read the archive ({reason}).") from None
    if not agree:
        raise CheckpointError(f"{path} is refused: its lists of entries are inconsistent.")
    return records


def _place(path: Path, handle: IO[bytes], entry: zipfile.ZipInfo) -> Record:
    """Where the bytes of an entry are; its local header says how far behind that header."""
    code = entry.filename.partition("/")[2].startswith("code/")  # of a TorchScript archive, and never read
    if not code and (entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size):
        name = printable(entry.filename, 80)
        raise CheckpointError(f"{path} is refused: {name} is compressed, as PyTorch writes no data.")
    handle.seek(entry.header_offset)
    header = handle.read(30)
    if len(header) < 30 or header[:4] != ZIP_START:
        raise CheckpointError(f"{path} is damaged: {printable(entry.filename, 80)} is not where the archive says.")
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    place = Record(entry.header_offset + 30 + name_length + extra_length, entry.file_size)
    if place.offset + entry.compress_size > os.fstat(handle.fileno()).st_size:
        raise cut_short(path)
    return place


def read_pickle_record(path: Path, records: Mapping[str, Record], *, torchscript: bool = False) -> Checked:
    """What data.pkl of an archive describes."""
    return check_pickle(io.BytesIO(read_record(path, records["data.pkl"])), str(path), torchscript=torchscript)


def read_record(path: Path, record: Record) -> bytes:
    """The bytes of a pickle in an archive."""
    if record.length > LARGEST_PICKLE:
        raise CheckpointError(f"{path} is refused: its list of tensors is larger than {LARGEST_PICKLE:,} bytes.")
    with path.open("rb") as handle:
        handle.seek(record.offset)
        return handle.read(record.length)


def check_storages(path: Path, storages: Mapping[str, Storage], records: Mapping[str, Record]) -> dict[str, Record]:
    """Where every storage is: an entry of the archive that is large enough.

    Raises:
        CheckpointError: naming the one that is not.
    """
    places = {}
    for key, storage in storages.items():
        record = records.get(f"data/{key}") or records.get(f"constants/{key}")
        named = printable(key, 40)
        if record is None:
            raise CheckpointError(f"{path} is damaged: the data of storage {named!r} are missing.")
        if storage_bytes(path, storage) > record.length:
            raise CheckpointError(
                f"{path} is inconsistent: storage {named!r} of {storage.elements:,} elements does not fit into "
                f"{record.length:,} bytes."
            )
        places[key] = record
    return places


def storage_bytes(path: Path, storage: Storage) -> int:
    """The size of a storage in bytes.

    Raises:
        CheckpointError: if it is of a type that weights do not have.
    """
    dtype = torch.uint8 if storage.kind == "UntypedStorage" else DTYPES.get(storage.kind)
    if dtype is None:
        kind = printable(storage.kind, 40)
        raise CheckpointError(f"{path} has tensors of a type that weights do not have ({kind}).")
    return storage.elements * dtype.itemsize


# ---------------------------------------------------------------- before zip archives


def _check_legacy(path: Path) -> tuple[Any, dict[str, Record]]:
    """Five pickles (magic number, version, system, data, keys of the storages), then each storage behind its size.

    Returns:
        What the data describe, and where each storage is.
    """
    places = {}
    with path.open("rb") as handle:
        stream = io.BytesIO(handle.read(LARGEST_PICKLE))
        where, end = str(path), os.fstat(handle.fileno()).st_size
        if check_pickle(stream, where).value != _LEGACY_MAGIC:
            raise CheckpointError(f"{path} is a pickle, but not one that PyTorch wrote.")
        _, _, data, listed = (check_pickle(stream, where) for _ in range(4))
        keys = getattr(listed.value, "items", None)
        if not isinstance(keys, list) or any(type(key) is not str for key in keys):
            raise CheckpointError(f"{path} is damaged: it does not end with its list of storages.")
        if len(keys) != len(set(keys)) or set(keys) != data.storages.keys():
            raise CheckpointError(f"{path} is inconsistent: its list of storages does not match its tensors.")
        handle.seek(stream.tell())
        for key in keys:
            written = handle.read(8)
            size = storage_bytes(path, data.storages[key])
            if len(written) < 8 or handle.tell() + size > end:
                raise cut_short(path)
            if int.from_bytes(written, "little") != data.storages[key].elements:
                raise CheckpointError(f"{path} is inconsistent: storage {printable(key, 40)!r} has another size.")
            places[key] = Record(handle.tell(), size)
            handle.seek(size, os.SEEK_CUR)
    return data.value, places
