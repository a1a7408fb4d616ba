"""Files of weights: what is in them is read, what is wrong with them is said, and nothing in them is run."""

import datetime
import io
import json
import os
import pickle
import pickletools
import random
import resource
import struct
import time
import warnings
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from clip_core.errors import CheckpointError
from clip_core.model.weight_files import open_weights, read_tensors

WEIGHTS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.ones(3, dtype=torch.float16),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scale": torch.tensor(4.6),
    "counts": torch.arange(3),
    "mask": torch.tensor([True, False]),
    "empty": torch.empty(0, 4),
}


class Trap:
    """A pickle of it would touch a file when it is run."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.sprung}",)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and found[name].shape == value.shape and torch.equal(found[name], value)
        for name, value in expected.items()
    )


def refused(path: Path) -> str:
    """The one sentence that a file is refused with."""
    with pytest.raises(CheckpointError) as error:
        read_tensors(path)
    sentence = str(error.value)
    assert str(path.parent) in sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_every_kind_of_tensor_is_read_bit_for_bit(tmp_path: Path, zipped: bool) -> None:
    torch.save(WEIGHTS, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    save_file(WEIGHTS, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert same(read_tensors(tmp_path / "w.pt"), WEIGHTS)
    assert same(read_tensors(tmp_path / "w.safetensors"), WEIGHTS)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_views_parameters_and_shared_storages_are_read_as_torch_reads_them(tmp_path: Path, zipped: bool) -> None:
    base = torch.randn(6, 5)
    views = OrderedDict(t=base.t(), part=base[2:4, 1:3], p=nn.Parameter(base), row=base[:, 2])
    torch.save(views, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(tmp_path / "w.pt"), torch.load(tmp_path / "w.pt", weights_only=True))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_the_tensors_of_a_training_checkpoint_have_dotted_names(tmp_path: Path, zipped: bool) -> None:
    model = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    checkpoint = {"epoch": 1, "state_dict": model.state_dict(), "optimizer": optimiser.state_dict(), "scaler": {}}
    torch.save(checkpoint, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "w.pt")
    prefix = "state_dict."
    weights = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    assert same(weights, model.state_dict())
    assert torch.equal(found["optimizer.state.0.exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_archive_is_read_for_its_tensors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4).half(), nn.Sequential(nn.LayerNorm(4)))
    torch.jit.save(torch.jit.script(model), tmp_path / "w.pt")
    opened = open_weights(tmp_path / "w.pt")
    assert opened.torchscript
    assert same(read_tensors(tmp_path / "w.pt"), model.state_dict())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_tensors_below_constants_are_found_too(tmp_path: Path) -> None:
    model = nn.Linear(3, 4)
    torch.jit.save(torch.jit.script(model), tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as old, zipfile.ZipFile(tmp_path / "moved.pt", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename.replace("w/data/", "w/constants/"), old.read(entry))
    assert same(read_tensors(tmp_path / "moved.pt"), model.state_dict())


# ---------------------------------------------------------------- nothing is run


@pytest.mark.parametrize("form", ["zip", "older", "pickle 2", "pickle 3", "pickle 4", "pickle 5", "nested"])
@pytest.mark.fault("hostile weights")
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    trap, path = Trap(tmp_path / "sprung"), tmp_path / "w.pt"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(trap, protocol=int(form[-1])))
    else:
        holder = {"state_dict": WEIGHTS, "args": trap} if form == "nested" else {"w": trap}
        torch.save(holder, path, _use_new_zipfile_serialization=form != "older")
    assert "would run posix.system" in refused(path)
    assert not (tmp_path / "sprung").exists()
    os.system(f"touch {tmp_path / 'sprung'}")  # the trap is a trap
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02ctorch\nload\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_device_tensor_from_numpy\n)R.",
        b"\x80\x02(S'x'\nibuiltins\nprint\n.",
        b"\x80\x02c__builtin__\ngetattr\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02\x82\x01.",
    ],
    ids=["eval", "torch.load", "rebuild", "INST", "getattr", "STACK_GLOBAL", "EXT1"],
)
def test_only_what_weights_need_is_understood(tmp_path: Path, code: bytes) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(code)
    assert "is refused" in refused(path)


@pytest.mark.fault("hostile weights")
def test_a_renamed_pickle_is_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for zipped in (True, False):
        torch.save({"w": Trap(tmp_path / "sprung")}, path, _use_new_zipfile_serialization=zipped)
        assert "a pickle named like" in refused(path)
    assert not (tmp_path / "sprung").exists()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each form in which PyTorch writes weights."""
    folder = tmp_path_factory.mktemp("intact")
    files = {form: folder / f"{form}.pt" for form in ("zip", "older", "torchscript")}
    torch.save(WEIGHTS, files["zip"])
    torch.save(WEIGHTS, files["older"], _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))), files["torchscript"])
    return files


def with_pickle(path: Path, changed: bytes, intact: Path, form: str) -> Path:
    """A copy of a file with another pickle as its list of tensors."""
    if form == "older":
        path.write_bytes(changed)
        return path
    with zipfile.ZipFile(intact) as old, zipfile.ZipFile(path, "w") as new:
        for each in old.infolist():
            new.writestr(each, changed if each.filename.endswith("/data.pkl") else old.read(each))
    return path


def pickle_of(path: Path, form: str) -> bytes:
    if form == "older":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(f"{path.stem}/data.pkl")


@pytest.mark.parametrize("form", ["zip", "older", "torchscript"])
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.fault("hostile weights")
def test_a_damaged_pickle_is_one_sentence_and_never_a_crash(
    tmp_path: Path, intact: dict[str, Path], form: str, data: st.DataObject
) -> None:
    raw = bytearray(pickle_of(intact[form], form))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = with_pickle(tmp_path / "w.pt", bytes(raw), intact[form], form)
    with suppress(CheckpointError):
        read_tensors(path)


@pytest.mark.parametrize("form", ["zip", "older"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.fault("hostile weights")
def test_a_damaged_file_is_one_sentence_and_never_a_crash(
    tmp_path: Path, intact: dict[str, Path], form: str, data: st.DataObject
) -> None:
    raw = bytearray(intact[form].read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "w.pt").write_bytes(raw)
    with suppress(CheckpointError):
        read_tensors(tmp_path / "w.pt")


LONG = (2**32 - 16).to_bytes(4, "little")
VAST = (2**62).to_bytes(8, "little")
TUPLES = b"\x80\x02)" + b"\x85" * 200_000
TREE = b"\x80\x02})" + b"q\x00h\x00\x86" * 35  # 2**35 leaves
ZERO = b"X\x01\0\0\x000"  # the text "0"
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu%st"
REBUILD = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"Q%s\x89}tRs."


def number(value: int) -> bytes:
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + raw


HOSTILE = {
    "text longer than the file": b"\x80\x02X" + LONG + b"abc.",
    "text of 2**62 bytes": b"\x80\x04\x8d" + VAST + b"abc.",
    "bytes of 2**62 bytes": b"\x80\x04\x8e" + VAST + b"abc.",
    "a bytearray of 2**62 bytes": b"\x80\x05\x96" + VAST + b"abc.",
    "a frame of 2**62 bytes": b"\x80\x04\x95" + VAST + b"N.",
    "an integer of 2 GB": b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"1.",
    "bytearray(2**40)": b"\x80\x02cbuiltins\nbytearray\n" + number(2**40) + b"\x85R.",
    "torch.Tensor(2**40)": b"\x80\x02ctorch\nTensor\n" + number(2**40) + b"\x85R.",
    "a set of nested tuples": b"\x80\x02cbuiltins\nset\n])" + b"\x85" * 200_000 + b"a\x85R.",
    "nested tuples": TUPLES + b".",
    "nested tuples as a key": b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
    "a tuple that is hashed without end as a key": TREE + b"Ns.",
    "nested tuples as a storage's key": b"\x80\x02" + (STORAGE % b"K\x01").replace(ZERO, TUPLES[2:]) + b"Q.",
    "nested lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a dict in itself": b"\x80\x02}q\x00X\x01\0\0\0ah\x00s.",
    "object number 2**32 - 1": b"\x80\x02}r\xff\xff\xff\xff.",
    "millions of instructions": b"\x80\x02" + b"N" * 1_100_000 + b".",
    "millions of marks": b"\x80\x02" + b"(" * 1_100_000 + b".",
    "a storage of 2**39 elements": REBUILD % (number(2**39), b"K\x00K\x01\x85K\x01\x85"),
    "a storage of 2**70 elements": REBUILD % (b"\x8a\x0a" + b"\0" * 8 + b"\x40\0", b"K\x00K\x01\x85K\x01\x85"),
    "a shape larger than its storage": REBUILD % (b"K\x02", b"K\x00" + number(2**39) + b"\x85K\x01\x85"),
    "a shape that repeats its storage": REBUILD % (b"K\x02", b"K\x00" + number(2**39) + b"\x85K\x00\x85"),
    "an offset behind the storage": REBUILD % (b"K\x02", b"K\x02K\x01\x85K\x01\x85"),
    "a negative stride": REBUILD % (b"K\x02", b"K\x01K\x02\x85J\xff\xff\xff\xff\x85"),
    "a tensor of two dtypes": b"\x80\x02(" + b"".join(
        (STORAGE % b"K\x02").replace(b"FloatStorage", kind) + b"Q" for kind in (b"FloatStorage", b"LongStorage")
    ) + b"t.",
    "a state of a tensor": (REBUILD % (b"K\x02", b"K\x00K\x01\x85K\x01\x85"))[:-2] + b"}bs.",
    "another codec": b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x03\0\0\0bz2\x86R.",
}  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "older", "torchscript"])
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.fault("hostile weights")
def test_a_hostile_pickle_is_refused_before_it_is_unpickled(
    tmp_path: Path, intact: dict[str, Path], form: str, name: str
) -> None:
    before = b""
    if form == "older":  # its first three pickles, and the list of storages behind the fourth
        before = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {}))
    after = pickle.dumps(["0"], 2) + (2).to_bytes(8, "little") + bytes(8) if form == "older" else b""
    path = with_pickle(tmp_path / "w.pt", before + HOSTILE[name] + after, intact[form], form)
    start = time.monotonic()
    assert len(refused(path)) < 400
    assert time.monotonic() - start < 60  # ten million times less than hashing such a tuple takes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 * 2**20  # KiB


class Settings:
    """Made by a call of its class, as the members of an enumeration."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Settings, ("fast",)


class Options(dict[str, Any]):
    """A dict with attributes, as Lightning stores hyperparameters in."""


BESIDE: dict[str, Any] = {
    "NumPy numbers": {"lr": np.float64(0.1) * 2, "seen": np.int64(3), "half": np.float16(0.5)},
    "NumPy arrays and random states": [np.arange(3), np.random.default_rng(0), np.random.get_state()],
    "Python's random state": random.getstate(),
    "arguments": Namespace(lr=0.1, out=Path("runs/x"), when=datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)),
    "a member of an enumeration": Settings(),
    "a dict of a class of its own": Options(lr=0.1),
    "sets": [{1, 2}, frozenset("a"), 1j, b"bytes", range(3)],
    "a class as a key": {Namespace: 1, None: 2, 0.5: 3, (1, "a"): 4},
    "an ordered and a counting dict": [OrderedDict(a=1), Counter("abca"), deque([1, 2])],
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_stands_beside_the_weights_of_a_training_checkpoint_is_passed_over(
    tmp_path: Path, protocol: int, zipped: bool
) -> None:
    for beside in BESIDE.values():
        torch.save(
            {"beside": beside, "state_dict": WEIGHTS}, tmp_path / "w.pt", pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )  # fmt: skip
        found = read_tensors(tmp_path / "w.pt")
        assert same({name.removeprefix("state_dict."): value for name, value in found.items()}, WEIGHTS)


def test_other_ways_of_writing_a_tensor(tmp_path: Path) -> None:
    named = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    named.tag = "kept with the parameter"  # type: ignore[attr-defined]
    small = torch.tensor([[1.5, -2.0], [0.25, 4.0]]).to(torch.float8_e4m3fn)
    torch.save({"named": named, "small": small, "unsigned": torch.arange(4).to(torch.uint16)}, tmp_path / "w.pt")
    found = read_tensors(tmp_path / "w.pt")
    assert torch.equal(found["named"], named.detach())
    assert torch.equal(found["small"].float(), small.float())
    assert found["unsigned"].tolist() == [0, 1, 2, 3]


@pytest.mark.fault("hostile weights")
def test_a_tensor_outside_of_an_untyped_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"small": torch.ones(8).to(torch.float8_e4m3fn)}, tmp_path / "w.pt")
    raw = pickle_of(tmp_path / "w.pt", "zip").replace(b"float8_e4m3fn", b"float64")
    assert "does not fit" in refused(with_pickle(tmp_path / "wider.pt", raw, tmp_path / "w.pt", "zip"))


@pytest.mark.parametrize("inside", [True, False], ids=["in a dict", "alone"])
def test_a_pickled_model_is_named_with_the_way_out(tmp_path: Path, inside: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.GELU())
    torch.save({"epoch": 1, "model": model} if inside else model, tmp_path / "w.pt")
    sentence = refused(tmp_path / "w.pt")
    assert "whole model" in sentence
    assert "torch.nn.modules.container.Sequential" in sentence
    assert "model.state_dict()" in sentence


def test_terminal_codes_in_a_file_do_not_reach_the_message(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"\x80\x02cos\x1b[31m\nsystem\n.")
    assert "\x1b" not in refused(tmp_path / "w.pt")


@pytest.mark.fault("hostile weights")
def test_storages_that_are_not_in_the_list_of_an_older_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    stream = io.BytesIO(raw)
    for _ in range(4):
        list(pickletools.genops(stream))
    path.write_bytes(raw[: stream.tell()] + pickle.dumps([], 2))  # torch.load would leave the tensor uninitialised
    assert "does not match its tensors" in refused(path)


def test_what_was_read_stays_when_the_file_changes(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    torch.save(WEIGHTS, tmp_path / "w.pt")
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pt"):
        tensors = read_tensors(path)
        with path.open("rb+") as handle:
            handle.write(b"\xff" * path.stat().st_size)
            handle.truncate(0)
        assert same(tensors, WEIGHTS)


def test_tensors_of_a_file_are_read_in_any_order(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "w.pt")
    tensors = open_weights(tmp_path / "w.pt").tensors
    for name in (*WEIGHTS, *reversed(WEIGHTS)):
        assert torch.equal(tensors[name].read(), WEIGHTS[name])


# ---------------------------------------------------------------- damaged


@pytest.mark.parametrize("form", ["zip", "older", "safetensors"])
@pytest.mark.fault("hostile weights")
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 9, 60, len(whole) // 2, len(whole) - 30, len(whole) - 1}:
        path.write_bytes(whole[:length])
        assert len(refused(path)) < 400


@pytest.mark.fault("hostile weights")
def test_an_older_file_cut_inside_the_size_of_its_last_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"empty": torch.empty(0, 4)}, path, _use_new_zipfile_serialization=False)  # ends with its size, 0
    whole = path.read_bytes()
    assert read_tensors(path)["empty"].shape == (0, 4)
    for missing in range(1, 9):
        path.write_bytes(whole[:-missing])
        assert "cut short" in refused(path)


def safetensors(path: Path, header: Any, body: bytes = b"\0" * 16, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)
    return path


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(shape=[5])},
        {"a": entry(shape=[2**62, 4])},
        {"a": entry(shape=[-4])},
        {"a": entry(shape=[4.0])},
        {"a": entry(shape="4")},
        {"a": entry(offsets=[0, 20])},
        {"a": entry(offsets=[16, 0])},
        {"a": entry(shape=[2**40], offsets=[0, 2**42])},
        {"a": entry(offsets=[16, 32])},
        {"a": entry(), "b": entry()},
        {"a": entry(shape=[2], offsets=[0, 8])},
        {"a": entry(dtype="F4")},
        {"a": entry(dtype=[])},
        {"a": [1, 2]},
        {"a": {}},
        [],
        b'{"a": 1, "a": 1}',
        b"{",
        b"\xff\xff",
        b"[" * 100_000,
    ],
)
@pytest.mark.fault("hostile weights")
def test_an_inconsistent_header_is_refused(tmp_path: Path, header: Any) -> None:
    refused(safetensors(tmp_path / "w.safetensors", header))


@pytest.mark.parametrize("length", [117, 10**8, 2**63, 2**64 - 1])
@pytest.mark.fault("hostile weights")
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    path = safetensors(tmp_path / "w.safetensors", {"a": entry()}, length=length)
    assert "header" in refused(path)


def rezipped(path: Path, change: dict[str, bytes | None], compress: str = "", twice: str = "") -> Path:
    """A copy of a zip archive with entries replaced, left out (None), compressed, or written twice."""
    other = path.with_name("other.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for each in old.infolist():
            content = change.get(each.filename, old.read(each))
            if content is not None:
                method = zipfile.ZIP_DEFLATED if each.filename == compress else zipfile.ZIP_STORED
                new.writestr(each.filename, content, method)
        if twice:
            with pytest.warns(UserWarning, match="Duplicate"):
                new.writestr(twice, b"\0" * 48)
    return other


def test_archives_that_are_not_what_pytorch_writes(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(WEIGHTS, path)
    assert "is compressed" in refused(rezipped(path, {}, compress="w/data/0"))
    assert "are missing" in refused(rezipped(path, {"w/data/0": None}))
    assert "does not fit" in refused(rezipped(path, {"w/data/0": b"\0" * 40}))
    assert "no data.pkl" in refused(rezipped(path, {"w/data.pkl": None}))
    assert "two entries" in refused(rezipped(path, {}, twice="w/data/0"))


@pytest.mark.fault("hostile weights")
def test_a_list_of_tensors_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(WEIGHTS, path)
    bomb = rezipped(path, {"w/data.pkl": b"\x80\x02" + b"N" * 70_000_000}, compress="w/data.pkl")
    assert bomb.stat().st_size < 10**6
    assert "is compressed" in refused(bomb)
    assert "larger than" in refused(rezipped(path, {"w/data.pkl": b"\x80\x02" + b"N" * 17_000_000}))


@pytest.mark.parametrize(("levels", "reason"), [(60, "more than 40 levels deep"), (30, "without end")])
@pytest.mark.fault("hostile weights")
def test_a_list_that_repeats_itself_without_end_is_refused(tmp_path: Path, levels: int, reason: str) -> None:
    nested: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(levels):
        nested = {"a": nested, "b": nested}
    torch.save(nested, tmp_path / "w.pt")
    assert reason in refused(tmp_path / "w.pt")


@pytest.mark.parametrize("content", ["a list", "a tensor", "nothing", "numbers"])
def test_what_is_no_dict_of_tensors_is_said(tmp_path: Path, content: str) -> None:
    holders: dict[str, Any] = {"a list": [torch.ones(2)], "a tensor": torch.ones(2), "nothing": {}, "numbers": {"a": 1}}
    torch.save(holders[content], tmp_path / "w.pt")
    assert "dict of" in refused(tmp_path / "w.pt")


# ---------------------------------------------------------------- several files


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    return index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})


def index(folder: Path, where: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return path


def test_an_index_joins_its_files(sharded: Path) -> None:
    assert same(read_tensors(sharded), {"a": torch.ones(2), "b": torch.zeros(3)})
    assert [file.name for file in open_weights(sharded).files] == ["one.safetensors", "two.safetensors"]


def test_a_missing_file_of_an_index_is_named(sharded: Path) -> None:
    sharded.with_name("two.safetensors").unlink()
    assert "two.safetensors is missing" in refused(sharded)


@pytest.mark.parametrize("file", ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", "", "a\\b"])
@pytest.mark.fault("hostile weights")
def test_an_index_that_names_a_file_elsewhere_is_refused(sharded: Path, file: str) -> None:
    assert "outside its folder" in refused(index(sharded.parent, {"a": file}))


@pytest.mark.parametrize("where", [[], 3, {"c": "one.safetensors"}, {"a": "model.safetensors.index.json"}])
def test_an_index_that_is_none(sharded: Path, where: Any) -> None:
    refused(index(sharded.parent, where))
