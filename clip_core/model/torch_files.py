"""Files of torch.save, zip archives and those of PyTorch before 1.6: checked, then read by torch.load."""

import io
import os
import pickle
import struct
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from clip_core.errors import CheckpointError
from clip_core.model.pickle_check import LARGEST_PICKLE, Storage, check_pickle
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
_REMAP_AFTER = 64 * 2**20  # bytes read through one mapping of a file
_REFUSALS = (
    pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError,
    OSError, AssertionError, OverflowError, struct.error,
)  # fmt: skip


class StoredTensor(NamedTuple):
    """A tensor that is still in its file; `read` gives it contiguous, in memory of its own."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


class Record(NamedTuple):
    """An entry of a zip archive: where its bytes are in the file."""

    offset: int
    length: int


def open_torch_save(path: Path, records: Mapping[str, Record] | None) -> tuple[dict[str, StoredTensor], bool]:
    """The tensors of a file of torch.save by name, and whether they were the `state_dict` of a training checkpoint.

    Args:
        records: of a zip archive, from `zip_records`; None for a file of PyTorch before 1.6.
    Raises:
        CheckpointError: if it is damaged, cut short, or holds anything but data.
    """
    if records is None:
        _check_legacy(path)
    else:
        check_storages(path, read_pickle_record(path, records).storages, records)
    file = _TorchFile(path, mapped=records is not None)
    loaded, nested = file.load()
    tensors = {}
    for name, tensor in loaded.items():
        tensors[name] = StoredTensor(tuple(tensor.shape), lambda name=name: file.read(name))  # type: ignore[misc]
    return tensors, nested


@dataclass
class _TorchFile:
    """A file that torch.load reads, tensor by tensor.

    A tensor of a mapped file is copied: the mapping would show what is later written into the file, and end the
    process if it became shorter. The file is mapped anew after every 64 MiB, since its pages count as memory while
    they are mapped: fp16 weights of ViT-L-14 would else take 1.5 times the memory of the fp32 result, instead of 1.15.
    """

    path: Path
    mapped: bool
    _loaded: dict[str, Tensor] | None = None
    _bytes: int = 0

    def load(self) -> tuple[dict[str, Tensor], bool]:
        self._loaded, self._bytes = None, 0  # the old mapping goes before the new one comes
        state = _torch_load(self.path, self.mapped)
        nested = isinstance(state, dict) and isinstance(state.get("state_dict"), dict)
        root = state["state_dict"] if nested else state
        if not isinstance(root, dict):
            raise not_a_state_dict(self.path, root)
        self._loaded = dict(_walk(self.path, root))
        if not self._loaded:
            raise no_tensors(self.path)
        return self._loaded, nested

    def read(self, name: str) -> Tensor:
        if self._loaded is None or name not in self._loaded or (self.mapped and self._bytes > _REMAP_AFTER):
            self.load()
        assert self._loaded is not None
        tensor = self._loaded.pop(name).detach()
        self._bytes += tensor.nbytes
        return tensor.clone(memory_format=torch.contiguous_format) if self.mapped else tensor.contiguous()


class _Ignored:
    """In place of NumPy's numbers in a training checkpoint, which nobody needs here."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _torch_load(path: Path, mapped: bool) -> Any:
    ignored = [(_Ignored, f"numpy.{name}") for name in ("dtype", "core.multiarray.scalar", "_core.multiarray.scalar")]
    try:
        with torch.serialization.safe_globals([defaultdict, dict, *ignored]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _REFUSALS as error:
        reason = printable(str(error).partition("\n")[0], 160)
        raise CheckpointError(f"{path} is damaged: torch.load cannot read it ({reason}).") from None


def _walk(path: Path, root: dict[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor below a dict, by its dotted name."""
    waiting: list[tuple[str, dict[Any, Any], int]] = [("", root, 0)]
    seen = 0
    while waiting:
        prefix, node, depth = waiting.pop()
        for name, value in node.items():
            seen += 1
            if seen > MOST_TENSORS or depth > _DEEPEST:
                raise endless(path)
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, dict):
                waiting.append((f"{prefix}{name}.", value, depth + 1))


# ---------------------------------------------------------------- what is wrong, also for TorchScript archives


def not_a_state_dict(path: Path, found: Any) -> CheckpointError:
    return CheckpointError(f"{path} holds a {type(found).__name__} in place of a state dict, a dict of tensors.")


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


def read_pickle_record(path: Path, records: Mapping[str, Record], *, torchscript: bool = False) -> Any:
    """data.pkl of an archive, checked: what `check_pickle` says of it."""
    return check_pickle(io.BytesIO(read_record(path, records["data.pkl"])), str(path), torchscript=torchscript)


def read_record(path: Path, record: Record) -> bytes:
    """The bytes of a pickle in an archive."""
    if record.length > LARGEST_PICKLE:
        raise CheckpointError(f"{path} is refused: its list of tensors is larger than {LARGEST_PICKLE:,} bytes.")
    with path.open("rb") as handle:
        handle.seek(record.offset)
        return handle.read(record.length)


def check_storages(path: Path, storages: Mapping[str, Storage], records: Mapping[str, Record]) -> None:
    """Every storage is an entry of the archive that is large enough.

    Raises:
        CheckpointError: naming the one that is not.
    """
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


def storage_bytes(path: Path, storage: Storage) -> int:
    """The size of a storage in bytes.

    Raises:
        CheckpointError: if it is of a type that weights do not have.
    """
    dtype = DTYPES.get(storage.kind)
    if dtype is None:
        kind = printable(storage.kind, 40)
        raise CheckpointError(f"{path} has tensors of a type that weights do not have ({kind}).")
    return storage.elements * dtype.itemsize


# ---------------------------------------------------------------- before zip archives


def _check_legacy(path: Path) -> None:
    """Five pickles (magic number, version, system, data, keys of the storages), then each storage behind its size."""
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
            handle.seek(size, os.SEEK_CUR)
