"""A pretrained encoder and the projection head trained on its features as one ONNX file of a bundle.

Shapes: B images or captions, S image side, T tokens, F features, D embedding.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import compose
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.errors import BackendError
from clip_core.model.encoders.base import FrozenEncoder
from clip_core.model.encoders.onnx_image import OnnxImageEncoder
from clip_core.text import printable
from export.convert import cause_of, convert_tower, save_onnx
from export.graphs import rename_input, same_version

_ENCODER = "encoder/"  # before the names of a joined encoder's graph
_DIFFERENCE = 1e-3  # of features between batches, relative to their size; more means that the batch is not free


class Joined(nn.Module):
    """Encoder, head, L2 normalisation.  pixel_values or input_ids -> (B, D)

    `use_tokens`: the head takes patch features, (B, P, F), in place of pooled ones, (B, F).
    """

    def __init__(self, encoder: FrozenEncoder, head: nn.Module, use_tokens: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.use_tokens = use_tokens

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder.token_features(x) if self.use_tokens else self.encoder(x)
        return F.normalize(self.head(features).float(), dim=-1)


class _Head(nn.Module):
    """(B, F), or (B, F, 1, 1) as some ONNX encoders have it -> (B, D), L2-normalised"""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(x.flatten(1)).float(), dim=-1)


def convert_joined(
    encoder: FrozenEncoder, head: nn.Module, path: Path, *, kept_log: Path, use_tokens: bool = False
) -> None:
    """Write an encoder and its head as one ONNX file, as `convert` writes a tower.

    Args:
        encoder: of images: pixel_values float32 (batch, 3, S, S) -> image_embeds (batch, D); of texts: input_ids int64
            (batch, tokens) -> text_embeds (batch, D), with the attention mask computed inside from the padding id.
        head: (B, F) -> (B, D), or (B, P, F) -> (B, D) with `use_tokens`; L2 normalisation is added.
        path: of the file; its folder is there.
        kept_log: keeps the output of the converter if it fails.
    Raises:
        BackendError: if it cannot be converted, or has a fixed batch size.
    """
    log = path.with_name(f"{path.name}.log")
    head = head.eval()
    try:
        if isinstance(encoder, OnnxImageEncoder):
            _join(encoder, head, path, log)
        else:
            _convert(Joined(encoder, head, use_tokens), path, log)
    except torch.onnx.OnnxExporterError as error:
        log.replace(kept_log)
        cause = cause_of(error)
        raise BackendError(
            f"the encoder {printable(encoder.info.name)} cannot be converted: {cause} (the whole output is in "
            f"{kept_log})."
        ) from None
    finally:
        log.unlink(missing_ok=True)


def _convert(joined: Joined, path: Path, log: Path) -> None:
    info, batch = joined.encoder.info, torch.export.Dim("batch")
    if info.side == "image":
        assert info.preprocessing is not None
        side = info.preprocessing.image_size
        example = torch.zeros(2, 3, side, side)
        convert_tower(joined, example, "pixel_values", "image_embeds", {0: batch}, path, log)
        return
    assert info.context_length is not None
    assert info.end_token is not None
    tokens = torch.export.Dim("tokens", min=2, max=info.context_length)
    captions = torch.full((2, min(5, info.context_length)), info.end_token)
    convert_tower(joined, captions, "input_ids", "text_embeds", {0: batch, 1: tokens}, path, log)


def _join(encoder: OnnxImageEncoder, head: nn.Module, path: Path, log: Path) -> None:
    """The encoder's own graph, followed by that of the head."""
    shape = list(encoder.session.get_outputs()[0].shape)
    features = torch.zeros(2, encoder.info.feature_size, *([1, 1] if len(shape) == 4 else []))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        place = Path(folder) / "head.onnx"
        convert_tower(_Head(head), features, "features", "image_embeds", {0: torch.export.Dim("batch")}, place, log)
        after = onnx.load(place)
    before = onnx.load(encoder.path)  # with the weights from the files beside it
    before, after = same_version(before, after, str(encoder.path))
    before = compose.add_prefix(before, _ENCODER)
    after = compose.add_prefix(after, "head/", rename_inputs=False, rename_outputs=False)
    joined = compose.merge_models(before, after, io_map=[(_ENCODER + encoder.output_name, "features")],
                                  outputs=["image_embeds"])  # fmt: skip
    rename_input(joined.graph, _ENCODER + encoder.input_name, "pixel_values")
    joined.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    joined.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    del joined.graph.value_info[:]
    save_onnx(joined, path)
    _check_batch(encoder, path)


def _check_batch(encoder: OnnxImageEncoder, path: Path) -> None:
    """Three images at once give what they give one by one.

    Raises:
        BackendError: if the encoder computes with a fixed batch size inside.
    """
    assert encoder.info.preprocessing is not None
    side = encoder.info.preprocessing.image_size
    images = np.random.default_rng(0).standard_normal((3, 3, side, side)).astype(np.float32)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        together: Any = session.run(None, {"pixel_values": images})[0]
        single = np.concatenate([session.run(None, {"pixel_values": images[i : i + 1]})[0] for i in range(3)])
        same = together.shape == single.shape and bool(np.abs(together - single).max() < _DIFFERENCE)
    except Exception:  # one of a dozen classes of the library, which have no common base
        same = False
    if not same:
        path.unlink()
        raise BackendError(f"{encoder.path} has a fixed batch size; export the encoder again with a dynamic one.")
