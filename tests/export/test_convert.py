"""The conversion of one tower."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clip_core.errors import BackendError
from export.convert import convert_tower


class FixedBatch(nn.Module):
    """A tower that asks for the batch with len(), which the exporter takes for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 1) + x


def test_a_tower_that_would_hold_for_one_batch_size_is_refused(tmp_path: Path) -> None:
    axes = {0: torch.export.Dim("batch")}
    with pytest.raises((BackendError, torch.onnx.OnnxExporterError), match=r"batch"):
        convert_tower(FixedBatch(), torch.zeros(2, 3), "x", "y", axes, tmp_path / "x.onnx", tmp_path / "log")
    assert not (tmp_path / "x.onnx").exists()
