"""fp16: half the size; inputs and outputs stay float32, and so does what fp16 cannot compute well."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from clip_core.files import scratch_folder
from export.convert import save_onnx
from export.int8 import Inputs
from export.sessions import open_every_output

# Sums of squares overflow above 65,504, and a softmax loses its small weights.
_SENSITIVE = {"LayerNormalization", "GroupNormalization", "InstanceNormalization", "ReduceL2", "ReduceMean",
              "ReduceSum", "Softmax", "Pow", "Sqrt", "Reciprocal", *DEFAULT_OP_BLOCK_LIST}  # fmt: skip
_LARGEST = 65504 / 8  # so that other inputs have room
_PRODUCTS = {"MatMul", "Gemm", "Conv", "Gather"}


def to_half(source: Path, target: Path, inputs: Inputs) -> str:
    """Write an fp16 version of an ONNX file.

    Nodes whose values come near the largest fp16 number on these inputs stay in fp32, as sums of the residual stream of
    large models do. They are looked for in fp32: on a CPU, ONNX Runtime computes fp16 nodes in fp32 without saying so.

    Returns:
        How it was made.
    """
    model = onnx.load(source)
    large = _large_nodes(model, inputs)
    own = {node.output[0] for node in model.graph.node if node.op_type == "Cast"}
    half = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=sorted(_SENSITIVE),
        node_block_list=sorted(_normalisation(model) | large),
    )
    join_casts(half, own)
    save_onnx(half, target)
    return "fp16, normalisation and softmax in fp32" + (f", and {len(large)} nodes of large values" if large else "")


def join_casts(model: onnx.ModelProto, own: set[str]) -> None:
    """Let fp32 nodes read each other directly: the converter rounds to fp16 between them.

    Args:
        own: outputs of the model's own casts, which read booleans or integers (a mask) and stay.
    """
    graph = model.graph
    casts = {node.output[0]: (node.input[0], node.attribute[0].i) for node in graph.node if node.op_type == "Cast"}
    direct = {}
    for out, (before, to) in casts.items():
        if before not in own and to == TensorProto.FLOAT and casts.get(before, ("", 0))[1] == TensorProto.FLOAT16:
            direct[out] = casts[before][0]
    outputs = {each.name: direct[each.name] for each in graph.output if each.name in direct}
    makers = {out: node for node in graph.node for out in node.output}
    for name, source in outputs.items():  # the node that makes the value makes the output
        node = makers[source]
        node.output[:] = [name if each == source else each for each in node.output]
        direct = {key: name if value == source else value for key, value in direct.items() if key != name}
        direct[source] = name
    for node in graph.node:
        node.input[:] = [direct.get(each, each) for each in node.input]
    while True:
        read = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
        made = {name for node in graph.node if node.op_type != "Cast" for name in node.output}
        kept = [node for node in graph.node if node.op_type != "Cast" or node.output[0] in read - made]
        if len(kept) == len(graph.node):
            return
        del graph.node[:]
        graph.node.extend(kept)


def _large_nodes(model: onnx.ModelProto, inputs: Inputs) -> set[str]:
    """The nodes that read or write values too large for fp16."""
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {each.name: each.type.tensor_type.elem_type for each in inferred.graph.value_info}
    inside = [out for node in model.graph.node for out in node.output if kinds.get(out) == TensorProto.FLOAT]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inside)
    with scratch_folder("export") as folder:
        path = folder / "probe.onnx"
        save_onnx(probe, path)
        values = open_every_output(path)(inputs[0][:2])
    too_large = {  # the minus infinity of a causal mask is a number of fp16
        name
        for name, each in zip(inside, values, strict=True)
        if np.abs(each[np.isfinite(each)]).max(initial=0) > _LARGEST
    }
    return {node.name for node in model.graph.node if too_large & {*node.input, *node.output}}


def _normalisation(model: onnx.ModelProto) -> set[str]:
    """The nodes between the last product and the output: the L2 norm, whose rounding would change every length."""
    makers = {out: node for node in model.graph.node for out in node.output}
    found: set[str] = set()
    names = [model.graph.output[0].name]
    while names:
        node = makers.get(names.pop())
        if node is not None and node.op_type not in _PRODUCTS and node.name not in found:
            found.add(node.name)
            names += node.input
    return found
