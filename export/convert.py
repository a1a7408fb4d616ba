"""Both towers as ONNX files: standard operators, weights inside the file, dynamic batch and token axes.

A text tower that reads its padding, as SigLIP's does, takes exactly its context.
"""

import copy
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from clip_core.errors import BackendError
from clip_core.inference.bundle import TEXT, VISION
from clip_core.model.clip import CLIP
from clip_core.model.projection import ExternalEncoder
from clip_core.network import TextTower
from clip_core.text import printable

OPSET = 18  # has LayerNormalization; supported by every ONNX Runtime that the base installation allows
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LARGEST = 2**31 - 1  # bytes; protobuf holds no more in one file


def convert(model: CLIP, folder: Path, kept_log: Path) -> None:
    """Write onnx/vision_model.onnx and onnx/text_model.onnx below `folder`.

    Args:
        model: in fp32.
        kept_log: keeps the output of the converter if it fails; none of it reaches the terminal.
    Raises:
        BackendError: if a tower cannot be converted, or would be larger than one ONNX file may be.
    """
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    image, text = model.config.image, model.config.text
    batch = torch.export.Dim("batch")
    tokens = torch.export.Dim("tokens", min=2, max=text.context_length)
    images = torch.zeros(2, 3, image.image_size, image.image_size)
    whole = isinstance(text, TextTower) and text.reads_padding
    length = text.context_length if whole else min(5, text.context_length)
    captions = torch.full((2, length), text.end_token)
    axes: dict[int, object] = {0: batch} if whole else {0: batch, 1: tokens}
    log = folder / "convert.log"
    log.touch()
    try:
        if isinstance(model.image, ExternalEncoder):
            convert_external(model.image, folder / VISION, kept_log)
        else:
            convert_tower(model.image, images, "pixel_values", "image_embeds", {0: batch}, folder / VISION, log)
        if isinstance(model.text, ExternalEncoder):
            convert_external(model.text, folder / TEXT, kept_log)
        else:
            convert_tower(model.text, captions, "input_ids", "text_embeds", axes, folder / TEXT, log)
    except torch.onnx.OnnxExporterError as error:
        log.replace(kept_log)
        cause = cause_of(error)
        raise BackendError(f"the model cannot be converted: {cause} (the whole output is in {kept_log}).") from None
    log.unlink()


def convert_external(tower: ExternalEncoder, path: Path, kept_log: Path) -> None:
    """Write an external encoder and its projection head as one file."""
    from export.external import convert_joined  # it uses convert_tower

    assert tower.encoder is not None
    convert_joined(tower.encoder, tower.head, path, kept_log=kept_log, use_tokens=tower.config.head.pool)


def convert_tower(
    tower: nn.Module,
    example: Tensor,
    input_name: str,
    output_name: str,
    axes: dict[int, object],
    path: Path,
    log: Path,
) -> None:
    """Write one tower as a file with one input and one output.

    Args:
        axes: the dynamic axes of the input, by position.
    Raises:
        BackendError: if the file would be too large, or an axis came out fixed.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in tower.parameters())
    if size > LARGEST:
        raise BackendError(
            f"the tower of {path.name} has {size / 2**30:.1f} GB of weights; one ONNX file holds at most 2 GB."
        )
    with _redirected_to(log):
        program = torch.onnx.export(
            on_cpu(tower).eval(),
            (example,),
            dynamo=True,
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=(axes,),
            opset_version=OPSET,
            external_data=False,
            optimize=True,
            verbose=False,
        )
    assert program is not None  # torch returns a program whenever dynamo=True
    proto = program.model_proto
    sizes = proto.graph.input[0].type.tensor_type.shape.dim
    if not all(sizes[axis].dim_param for axis in axes):  # as len() in a tower does, without an error
        raise BackendError(f"{path.name} has a fixed batch size or length: the tower does not support dynamic axes.")
    drop_metadata(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def on_cpu(tower: nn.Module) -> nn.Module:
    """The tower if it is on the CPU, else a copy there: example inputs and ONNX weights are on the CPU."""
    tensors = (*tower.parameters(), *tower.buffers())
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return tower
    moved: dict[int, object] = {id(buffer): buffer.cpu() for buffer in tower.buffers()}
    moved |= {id(weights): nn.Parameter(weights.detach().cpu()) for weights in tower.parameters()}
    return copy.deepcopy(tower, memo=moved)  # the modules alone: the device holds the weights once


def drop_metadata(proto: onnx.ModelProto) -> None:
    """Drop the converter's debugging metadata: stack traces with local paths, and names."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def cause_of(error: Exception) -> str:
    """The first line of what the converter says, without its colours."""
    return printable(_COLOUR.sub("", str(error)).strip().partition("\n")[0], 160)


@contextmanager
def _redirected_to(log: Path) -> Iterator[None]:
    """Redirect stdout and stderr of this process, also from native code, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    try:
        with log.open("ab") as handle, warnings.catch_warnings():
            warnings.simplefilter("default")
            os.dup2(handle.fileno(), 1)
            os.dup2(handle.fileno(), 2)
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
