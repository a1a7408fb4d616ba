"""The conversion of one tower."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import clip_core
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import BackendError
from clip_core.inference.manifest import TEXT
from export.convert import OPSET, convert_tower, drop_metadata, on_cpu
from export.sessions import open_onnx


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        os.write(1, b"printed while it is traced")  # as native code prints
        return x * self.weight


class FixedBatch(nn.Module):
    """The exporter takes len() for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 1) + x


def convert_one(tower: nn.Module, folder: Path) -> Path:
    path = folder / "x.onnx"
    convert_tower(tower, torch.zeros(2, 3), "x", "y", {0: torch.export.Dim("batch")}, path, folder / "log")
    return path


def test_a_tower_is_written_for_every_batch_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    session = ort.InferenceSession(convert_one(Doubled(), tmp_path).read_bytes())
    for batch in (1, 2, 7):
        found = session.run(["y"], {"x": torch.ones(batch, 3).numpy()})[0]
        assert found.tolist() == [[2.0] * 3] * batch
    assert capfd.readouterr() == ("", "")
    assert "printed while it is traced" in (tmp_path / "log").read_text()


def test_a_tower_with_a_fixed_batch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"^x\.onnx has a fixed batch size or length"):
        convert_one(FixedBatch(), tmp_path)
    assert not (tmp_path / "x.onnx").exists()


def test_a_tower_on_a_gpu_is_converted_from_a_copy_on_the_cpu() -> None:
    with FakeTensorMode():
        tower = nn.Sequential(nn.Linear(3, 4, device="cuda"), nn.BatchNorm1d(4, device="cuda"))
        moved = on_cpu(tower)
        assert {tensor.device.type for tensor in moved.state_dict().values()} == {"cpu"}
        assert {tensor.device.type for tensor in tower.state_dict().values()} == {"cuda"}
    there = Doubled()
    assert on_cpu(there) is there


def test_debugging_metadata_is_dropped(tmp_path: Path) -> None:
    proto = onnx.load(convert_one(Doubled(), tmp_path))
    proto.graph.node[0].doc_string = str(tmp_path)
    proto.graph.metadata_props.add(key="trace", value=str(tmp_path))
    drop_metadata(proto)
    assert str(tmp_path).encode() not in proto.SerializeToString()


def test_captions_are_computed_to_their_first_end_token(tiny_bundle: Path) -> None:
    text = open_onnx(tiny_bundle / TEXT)
    tokenizer = Tokenizer.load(tiny_bundle / "tokenizer.json")
    ids = tokenizer.encode(["a red circle", "a blue square and more"])
    whole = np.full((2, tokenizer.context_length), tokenizer.pad_id, np.int64)
    whole[:, : ids.shape[1]] = ids
    after = whole.copy()
    after[0, -1] = tokenizer.end_token  # what follows the first end token is padding
    for padded in (whole, after):
        assert np.abs(text(padded) - text(ids)).max() < 1e-6
    cut, ended = ids[:, :8], ids[:, :8].copy()  # as software truncates that does not keep the end token
    ended[:, -1] = tokenizer.end_token
    embeds = text(cut)
    assert np.abs(embeds[0] - embeds[1]).max() > 1e-2
    assert np.abs(embeds - text(ended)).max() < 1e-6


def test_the_producer_and_the_operator_set_are_recorded(tiny_bundle: Path) -> None:
    for path in (tiny_bundle / "onnx").iterdir():
        proto = onnx.load(path)
        assert (proto.producer_name, proto.producer_version) == ("clip-tui", clip_core.__version__)
        assert [(each.domain, each.version) for each in proto.opset_import] == [("", OPSET)]
