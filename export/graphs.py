"""Joining the ONNX files of a bundle with each other, or with a few nodes before and after."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, ValueInfoProto, compose, parser, version_converter

from clip_core.errors import BackendError
from clip_core.text import printable
from export.convert import LARGEST, OPSET, save_onnx

STANDARD = ("", "ai.onnx")


def load_graph(path: Path, prefix: str) -> ModelProto:
    """An ONNX file whose inner names begin with `prefix`, so that it can be joined with another; weights inside."""
    model = onnx.load(path)
    del model.graph.value_info[:]
    return compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)


def parse_graph(text: str, prefix: str, like: ModelProto) -> ModelProto:
    """A graph in ONNX's text form, in the operator set and file version of `like`; inner names begin with `prefix`."""
    header = f'<ir_version: {like.ir_version}, opset_import: ["" : {operator_set(like)}]>'
    model = parser.parse_model(f"{header}\n{text}")
    return compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)


def join(first: ModelProto, second: ModelProto, names: Mapping[str, str], outputs: list[str]) -> ModelProto:
    """`second` after `first`: the output of each key becomes the input of its value; inputs keep their order."""
    return compose.merge_models(first, second, io_map=list(names.items()), outputs=outputs)


def operator_set(model: ModelProto) -> int:
    """The version of ONNX's own operators that a file uses."""
    return next(int(each.version) for each in model.opset_import if each.domain in STANDARD)


def same_version(one: ModelProto, other: ModelProto, what: str) -> tuple[ModelProto, ModelProto]:
    """Both in the later of their operator sets, at least that of a bundle, and of their file versions.

    Args:
        what: the file or encoder in words, for the error.
    Raises:
        BackendError: if one cannot be converted.
    """
    version = max(operator_set(one), operator_set(other), OPSET)
    try:
        models = [
            model if operator_set(model) == version else version_converter.convert_version(model, version)
            for model in (one, other)
        ]
    except RuntimeError as error:
        lowest = min(operator_set(one), operator_set(other))
        raise BackendError(
            f"{what} has operator set {lowest}, which cannot be converted to {version} "
            f"({printable(str(error), 120)}); export the encoder again with opset {version}."
        ) from None
    for model in models:
        model.ir_version = max(one.ir_version, other.ir_version)
        del model.opset_import[:]
        model.opset_import.append(onnx.helper.make_opsetid("", version))
    return models[0], models[1]


def rename_axes(graph: GraphProto, **names: str) -> None:
    """Other names for the dynamic axes of a graph's inputs and outputs."""
    for entry in (*graph.input, *graph.output):
        for axis in entry.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]


def fix_shape(entry: ValueInfoProto, shape: Sequence[int]) -> None:
    """Give an input or output sizes in place of its dynamic axes."""
    for axis, size in zip(entry.type.tensor_type.shape.dim, shape, strict=True):
        axis.Clear()
        axis.dim_value = size


def rename_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Another name for an input, also where a subgraph of a node reads it."""
    for entry in graph.input:
        entry.name = new if entry.name == old else entry.name
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else ():
                rename_input(inner, old, new)


def save_graph(model: ModelProto, path: Path) -> None:
    """Write a file with all of its weights, the same bytes for the same graph.

    Raises:
        BackendError: if it would be larger than one ONNX file may be.
    """
    if model.ByteSize() > LARGEST:
        raise BackendError(
            f"{path.name} would have {model.ByteSize() / 2**30:.1f} GB; one ONNX file holds at most 2 GB."
        )
    model.graph.name = path.stem
    path.parent.mkdir(parents=True, exist_ok=True)
    save_onnx(model, path)
