"""An encoder and its head as one ONNX file say what they say in PyTorch, at any batch size and length."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from clip_core.errors import BackendError
from clip_core.inference.onnx_encoder import make_session
from clip_core.model.encoders.base import FrozenEncoder
from clip_core.model.encoders.resolve import load_image_encoder, load_text_encoder
from clip_core.model.onnx_file import check_onnx
from export.external import Joined, convert_joined
from tests.encoders import CAPTIONS, SIDE, image_folder, onnx_encoder, static_folder, text_folder, timm_folder
from tests.published import images

D = 8


def onnx_image(folder: Path, **how: Any) -> FrozenEncoder:
    return load_image_encoder(str(onnx_encoder(folder / "encoder.onnx", **how)), preprocessing="clip")


IMAGE: dict[str, Callable[[Path], FrozenEncoder]] = {
    "timm mobilenet": lambda path: load_image_encoder(str(timm_folder(path, "mobilenetv3_small_050"))),
    "dinov2": lambda path: load_image_encoder(str(image_folder(path, "dinov2"))),
    "convnext": lambda path: load_image_encoder(str(image_folder(path, "convnext"))),
    "onnx": lambda path: onnx_image(path, external=True),
    "onnx 4d": lambda path: onnx_image(path, flat=False),
    "onnx opset 13": lambda path: onnx_image(path, opset=13),
    "onnx opset 20": lambda path: onnx_image(path, opset=20),
}

TEXT: dict[str, Callable[[Path], FrozenEncoder]] = {
    "bert": lambda path: load_text_encoder(str(text_folder(path, "bert", pooling="mean_tokens"))),
    "xlm-roberta": lambda path: load_text_encoder(str(text_folder(path, "xlm-roberta"))),
    "mpnet": lambda path: load_text_encoder(str(text_folder(path, "mpnet"))),
    "static": lambda path: load_text_encoder(str(static_folder(path))),
}


class Residual(nn.Module):
    """A head like those that are trained: normalised features, linear plus an MLP."""

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.norm, self.linear = nn.LayerNorm(size), nn.Linear(size, D)
        self.mlp = nn.Sequential(nn.Linear(size, 12), nn.GELU(), nn.Linear(12, D))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        out: torch.Tensor = self.linear(x) + self.mlp(x)
        return out


class Attention(nn.Module):
    """A head over patches: (B, P, F) -> (B, D)"""

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.score, self.linear = nn.Linear(size, 1), nn.Linear(size, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear((self.score(x).softmax(dim=1) * x).sum(dim=1))
        return out


def compare(joined: Joined, path: Path, inputs: torch.Tensor, name: str) -> None:
    check_onnx(path.read_bytes(), str(path))  # as a bundle's reader does
    session = make_session(path, path.name)
    assert [each.name for each in session.get_inputs()] == [name]
    for batch in (len(inputs), 3, 1):
        with torch.no_grad():
            expected = joined(inputs[:batch]).numpy()
        found = session.run(None, {name: inputs[:batch].numpy()})[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("kind", IMAGE)
def test_an_image_encoder_and_its_head_are_one_graph(kind: str, tmp_path: Path) -> None:
    encoder = IMAGE[kind](tmp_path / "encoder")
    head, path = Residual(encoder.info.feature_size), tmp_path / "vision_model.onnx"
    convert_joined(encoder, head, path, kept_log=tmp_path / "log")
    compare(Joined(encoder, head).eval(), path, images(), "pixel_values")
    assert onnx.load(path).graph.output[0].name == "image_embeds"
    assert [place.name for place in tmp_path.iterdir() if place.name != "encoder"] == ["vision_model.onnx"]


def test_a_head_over_patches_is_part_of_the_graph(tmp_path: Path) -> None:
    encoder = load_image_encoder(str(image_folder(tmp_path / "encoder", "vit")), features="patches")
    head, path = Attention(16), tmp_path / "vision_model.onnx"
    convert_joined(encoder, head, path, kept_log=tmp_path / "log", use_tokens=True)
    compare(Joined(encoder, head, use_tokens=True).eval(), path, images(), "pixel_values")


@pytest.mark.parametrize("kind", TEXT)
def test_a_text_encoder_and_its_head_are_one_graph_with_the_mask_inside(kind: str, tmp_path: Path) -> None:
    encoder = TEXT[kind](tmp_path / "encoder")
    head, path = Residual(encoder.info.feature_size), tmp_path / "text_model.onnx"
    convert_joined(encoder, head, path, kept_log=tmp_path / "log")
    joined = Joined(encoder, head).eval()
    assert encoder.tokenizer is not None
    captions = CAPTIONS[:4] if kind == "static" else CAPTIONS  # the mean of no words is zero, which has no direction
    for texts in (captions, captions[:3]):
        compare(joined, path, torch.from_numpy(encoder.tokenizer.encode(texts)), "input_ids")
    short = torch.from_numpy(encoder.tokenizer.encode(captions[:1]))
    padded = torch.nn.functional.pad(short, (0, 3), value=encoder.tokenizer.pad_id)
    session = make_session(path, path.name)
    found = [session.run(None, {"input_ids": ids.numpy()})[0] for ids in (short, padded)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_an_onnx_encoder_with_a_fixed_batch_inside_is_refused(tmp_path: Path) -> None:
    path = onnx_encoder(tmp_path / "encoder" / "e.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    shape = onnx.numpy_helper.from_array(np.array([1, 6]), "shape")
    model.graph.initializer.append(shape)
    model.graph.node[3].CopyFrom(onnx.helper.make_node("Reshape", ["mean", "shape"], ["features"]))
    onnx.save(model, path)
    encoder = load_image_encoder(str(path), preprocessing="clip")
    assert encoder(torch.zeros(3, 3, SIDE, SIDE)).shape == (3, 6)
    with pytest.raises(BackendError, match="has a fixed batch size; export the encoder again with a dynamic one"):
        convert_joined(encoder, Residual(6), tmp_path / "vision_model.onnx", kept_log=tmp_path / "log")
