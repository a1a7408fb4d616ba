"""Both towers as ONNX files: standard operators, dynamic batch and token axes, the same bytes for the same weights.

A text tower that reads its padding, as SigLIP's does, takes exactly its context. Any other computes captions up to the
last end token of the batch, whatever they are padded to. Weights above 2 GB are in one file beside the ONNX file.
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
from onnx import TensorProto, helper
from torch import Tensor, nn

import clip_core
from clip_core.errors import BackendError
from clip_core.files import append_regular
from clip_core.inference.manifest import DATA, TEXT, VISION
from clip_core.model.clip import CLIP
from clip_core.model.image_encoder import ImageEncoder
from clip_core.model.projection import ExternalEncoder
from clip_core.model.text_encoder import TextEncoder
from clip_core.network import TextTower
from clip_core.text import printable
from export.onnx_towers import OnnxImageTower, OnnxTextTower

# Has LayerNormalization; read by every ONNX Runtime that the base installation allows. The Attention operator of 23 is
# no faster on a CPU than its parts, nor is com.microsoft's, which would need a custom domain besides.
OPSET = 18
LARGEST = 2**31 - 2**20  # bytes of weights in one file; protobuf holds less than 2 GB
_IN_THE_FILE = 1024  # bytes; smaller tensors stay in the ONNX file, where shapes are computed from them
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def convert(model: CLIP, folder: Path, kept_log: Path) -> None:
    """Write onnx/vision_model.onnx and onnx/text_model.onnx below `folder`.

    Args:
        model: in fp32.
        kept_log: keeps the output of the converter if it fails; none of it reaches the terminal.
    Raises:
        BackendError: if a tower cannot be converted.
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
            vision = OnnxImageTower(model.image) if isinstance(model.image, ImageEncoder) else model.image
            convert_tower(vision, images, "pixel_values", "image_embeds", {0: batch}, folder / VISION, log)
        if isinstance(model.text, ExternalEncoder):
            convert_external(model.text, folder / TEXT, kept_log)
        else:
            own = model.text if isinstance(model.text, TextEncoder) else None
            tower = OnnxTextTower(own) if own else model.text
            end = text.end_token if own and not whole else None  # towers of transformers mask their padding
            convert_tower(tower, captions, "input_ids", "text_embeds", axes, folder / TEXT, log, trim=end)
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
    trim: int | None = None,
) -> None:
    """Write one tower as a file with one input and one output.

    Args:
        axes: the dynamic axes of the input, by position.
        trim: the end token of captions that are computed up to it alone.
    Raises:
        BackendError: if an axis came out fixed.
    """
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
    if trim is not None:
        trim_captions(proto, trim)
    save_onnx(proto, path)


def trim_captions(proto: onnx.ModelProto, end_token: int) -> None:
    """Cut `input_ids` inside the graph after the last first end token of the batch.

    Software that pads captions to the whole context is thereby as fast as one that does not.
    """
    graph, name = proto.graph, "input_ids"
    for node in graph.node:
        node.input[:] = ["trimmed_ids" if each == name else each for each in node.input]
    for key, value in {"end": end_token, "zero": 0, "one": 1}.items():
        graph.initializer.append(helper.make_tensor(f"trim/{key}", TensorProto.INT64, [1], [value]))
    nodes = [
        helper.make_node("Equal", [name, "trim/end"], ["trim/is_end"]),
        helper.make_node("Cast", ["trim/is_end"], ["trim/ends"], to=TensorProto.INT32),
        helper.make_node("ArgMax", ["trim/ends"], ["trim/places"], axis=1, keepdims=1),  # the first of equals
        helper.make_node("ReduceMax", ["trim/places"], ["trim/longest"], keepdims=0),
        helper.make_node("Add", ["trim/longest", "trim/one"], ["trim/length"]),
        helper.make_node("Slice", [name, "trim/zero", "trim/length", "trim/one"], ["trimmed_ids"]),
    ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def save_onnx(proto: onnx.ModelProto, path: Path) -> None:
    """Write a model with the same bytes for the same weights; above 2 GB of weights, they are in PATH.data."""
    proto.producer_name, proto.producer_version = "clip-tui", clip_core.__version__
    for number, node in enumerate(proto.graph.node):  # layers are kept in fp32 by their names
        node.name = node.name or f"{node.op_type}_{number}"
    drop_metadata(proto)
    del proto.graph.value_info[:]
    large = [each for each in proto.graph.initializer if len(each.raw_data) >= _IN_THE_FILE]
    if sum(len(each.raw_data) for each in large) > LARGEST:
        _write_beside(large, path.with_name(path.name + DATA))
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _write_beside(tensors: list[TensorProto], path: Path) -> None:
    """Move the weights of tensors into one file, each from a page of its own, so that it can be memory-mapped."""
    with path.open("wb") as file:
        for tensor in tensors:
            file.write(b"\0" * (-file.tell() % 4096))
            place = {"location": path.name, "offset": str(file.tell()), "length": str(len(tensor.raw_data))}
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)


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
        with append_regular(log) as handle, warnings.catch_warnings():
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
