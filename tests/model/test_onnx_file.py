"""The walk over an ONNX file's bytes: what a bundle may not ask for is refused wherever it hides."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from clip_core.errors import BundleError
from clip_core.model.onnx_file import check_onnx

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
COND = helper.make_tensor("cond", TensorProto.BOOL, [], [True])


def model(*nodes: onnx.NodeProto, weights: tuple[onnx.TensorProto, ...] = ()) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [X], [Y], initializer=list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def identity(domain: str = "") -> onnx.NodeProto:
    return helper.make_node("Identity", ["x"], ["y"], domain=domain)


def weight(name: str = "w") -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(4, np.float32), name)


def outside(tensor: onnx.TensorProto, location: str = "../../etc/passwd") -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def branch(node: onnx.NodeProto) -> onnx.NodeProto:
    inner = helper.make_graph([node], "branch", [], [Y])
    return helper.make_node("If", ["cond"], ["y"], then_branch=inner, else_branch=inner)


def with_function() -> onnx.ModelProto:
    made = model(identity())
    made.functions.append(helper.make_function("", "Add", ["a"], ["b"], [identity()], [helper.make_opsetid("", 18)]))
    return made


def with_training() -> onnx.ModelProto:
    made = model(identity())
    made.training_info.add().algorithm.name = "more"
    return made


def with_import() -> onnx.ModelProto:
    made = model(identity())
    made.opset_import.append(helper.make_opsetid("com.evil", 1))
    return made


def with_sparse() -> onnx.ModelProto:
    made = model(identity())
    made.graph.sparse_initializer.add().values.CopyFrom(outside(weight()))
    return made


def constant(tensor: onnx.TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["y"], value=tensor)


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (lambda: model(identity("com.evil")), "com.evil"),
        (lambda: model(branch(identity("com.evil")), weights=(COND,)), "com.evil"),
        (lambda: model(branch(branch(identity("com.evil"))), weights=(COND,)), "com.evil"),
        (with_import, "com.evil"),
        (lambda: model(identity("com.microsoft")), "com.microsoft"),
        (with_function, "operators of its own"),
        (with_training, "training instructions"),
        (lambda: model(identity(), weights=(outside(weight()),)), "weights in another file"),
        (lambda: model(identity(), weights=(outside(weight(), "beside.bin"),)), "weights in another file"),
        (lambda: model(constant(outside(weight()))), "weights in another file"),
        (lambda: model(branch(constant(outside(weight()))), weights=(COND,)), "weights in another file"),
        (with_sparse, "weights in another file"),
    ],
)
@pytest.mark.fault("hostile bundle")
def test_what_a_bundle_may_not_ask_for_is_refused(hostile, message) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        check_onnx(hostile().SerializeToString(), "model.onnx")
    assert "model.onnx" in str(caught.value)


def test_a_location_without_a_list_of_files_is_refused_too() -> None:
    tensor = weight()
    tensor.data_location = TensorProto.EXTERNAL
    with pytest.raises(BundleError):
        check_onnx(model(identity(), weights=(tensor,)).SerializeToString(), "model.onnx")


def test_standard_operators_with_their_weights_pass() -> None:
    made = model(branch(constant(weight())), weights=(COND, weight("v")))
    check_onnx(made.SerializeToString(), "model.onnx")


def test_the_files_of_an_export_pass(tiny_bundle: Path) -> None:
    for path in (tiny_bundle / "onnx").iterdir():
        check_onnx(path.read_bytes(), path.name)


@pytest.mark.fault("hostile bundle")
def test_graphs_nested_without_end_are_refused() -> None:
    # By hand, since protobuf itself will not write it: a graph (7) of a node (1) of an attribute (5) of a graph (6)
    def wrapped(field: int, content: bytes) -> bytes:
        length, size = len(content), b""
        while True:
            size += bytes([(length & 0x7F) | (0x80 if length > 0x7F else 0)])
            length >>= 7
            if not length:
                return bytes([field << 3 | 2]) + size + content

    graph = b""
    for _ in range(60):
        graph = wrapped(1, wrapped(5, wrapped(6, graph)))
    with pytest.raises(BundleError, match="deep"):
        check_onnx(wrapped(7, graph), "model.onnx")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with suppress(BundleError):
        check_onnx(content, "model.onnx")


@settings(max_examples=100, deadline=None)
@given(st.integers(min_value=1, max_value=60))
def test_a_file_cut_short_never_hides_what_stood_before_the_cut(cut: int) -> None:
    content = model(identity("com.evil")).SerializeToString() + b"\x0a\x7f" + b"x" * cut
    with pytest.raises(BundleError):
        check_onnx(content, "model.onnx")
