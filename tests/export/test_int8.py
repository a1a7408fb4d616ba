"""int8 and fp16 versions of a graph: the way is chosen by what it measures, on graphs that spoil the wrong way."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from export.half import to_half
from export.int8 import GOOD, Candidate, choose, quantise, quantise_tables
from export.sessions import least_and_mean_cosine, open_onnx

RNG = np.random.default_rng(0)


def random(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def write(path: Path, nodes: list, weights: dict[str, np.ndarray], given: list, width: int, kind: int = 1) -> Path:
    """A graph from `x` to `embeds`, with the L2 norm after the node that makes `y`."""
    nodes = [
        *nodes,
        helper.make_node("ReduceL2", ["y", "last"], ["norm"], keepdims=1),
        helper.make_node("Div", ["y", "norm"], ["embeds"]),
    ]
    for number, node in enumerate(nodes):
        node.name = f"{node.op_type}_{number}"
    weights = weights | {"last": np.array([-1], np.int64)}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, ["batch", *given])],
        [helper.make_tensor_value_info("embeds", TensorProto.FLOAT, ["batch", width])],
        initializer=[numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def depthwise_network(path: Path) -> Path:
    """Depthwise weights with two channels that hardly vary, as folded batch normalisation leaves them: large ones."""
    sizes = np.ones(16, np.float32)
    sizes[[2, 9]] = 1e-3
    weights = {
        "stem": random(16, 3, 3, 3, scale=0.3) * sizes[:, None, None, None],
        "depth": random(16, 1, 3, 3) / sizes[:, None, None, None],
        "point": random(24, 16, 1, 1),
        "head": random(24, 12),
        "bias": random(12),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], strides=[2, 2]),
        helper.make_node("Conv", ["a", "depth"], ["b"], group=16, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "point"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "head", "bias"], ["y"]),
    ]
    return write(path, nodes, weights, [3, 16, 16], 12)


def cosine(one: Path, other: Path, inputs: np.ndarray) -> float:
    return least_and_mean_cosine([open_onnx(one)(inputs)], [open_onnx(other)(inputs)])[0]


def test_depthwise_convolutions_survive_int8(tmp_path: Path) -> None:
    source, plain, target = depthwise_network(tmp_path / "x.onnx"), tmp_path / "plain.onnx", tmp_path / "q.onnx"
    batches = [random(8, 3, 16, 16) for _ in range(4)]
    quantize_dynamic(source, plain, per_channel=True, weight_type=QuantType.QUInt8)
    said: list[str] = []
    how = quantise(source, target, batches, said.append)
    judged = np.concatenate(batches)
    assert cosine(source, plain, judged) < 0.98  # what the library does with convolutions unless told otherwise
    assert cosine(source, target, judged) > 0.99, said
    assert "static" in how
    kinds = {node.op_type for node in onnx.load(target).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    assert {each.domain for each in onnx.load(target).opset_import} == {""}


def test_products_that_quantise_badly_stay_in_fp32(tmp_path: Path) -> None:
    outlier = np.ones(32, np.float32)
    outlier[3] = 2000
    weights: dict[str, np.ndarray] = {"w0": random(32, 32, scale=0.2), "outlier": outlier}
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h0"]), helper.make_node("Mul", ["h0", "outlier"], ["o"])]
    weights["w1"] = random(32, 32, scale=0.2) / outlier[:, None]
    nodes.append(helper.make_node("MatMul", ["o", "w1"], ["h1"]))
    for number in range(2, 9):
        weights[f"w{number}"] = random(32, 32, scale=0.2)
        out = "y" if number == 8 else f"h{number}"
        nodes.append(helper.make_node("MatMul", [f"h{number - 1}", f"w{number}"], [out]))
    source, target = write(tmp_path / "x.onnx", nodes, weights, [32], 32), tmp_path / "q.onnx"
    batches = [random(8, 32) for _ in range(4)]
    said: list[str] = []
    how = quantise(source, target, batches, said.append)
    assert said[0].startswith("  x.onnx, dynamic int8: least cosine ")
    assert float(said[0].split("cosine ")[1].split(",")[0]) < GOOD
    assert "layers in fp32" in how
    kept = [node for node in onnx.load(target).graph.node if node.op_type == "MatMul"]
    assert "w1" in {name for node in kept for name in node.input}
    assert cosine(source, target, batches[-1]) > 0.995


def test_the_choice_is_by_accuracy_and_among_the_accurate_by_speed() -> None:
    def one(how: str, least: float, mean: float, seconds: float) -> Candidate:
        return Candidate(how, Path(how), least, mean, seconds)

    slow, fast = one("slow", 0.9999, 0.9999, 2.0), one("fast", GOOD, 0.9995, 1.0)
    bad, worse = one("bad", 0.95, 0.99, 1.0), one("worse", 0.96, 0.98, 0.1)
    assert choose([slow, fast, bad]).how == "fast"
    assert choose([worse, bad]).how == "bad"


def test_embedding_tables_have_a_scale_for_each_row(tmp_path: Path) -> None:
    table = random(300, 8) * np.logspace(-4, 2, 300).astype(np.float32)[:, None]
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    path = write(tmp_path / "x.onnx", nodes, {"table": table}, [], 8, TensorProto.INT64)
    model = onnx.load(path)
    quantise_tables(model)
    onnx.save(model, tmp_path / "q.onnx")
    assert cosine(path, tmp_path / "q.onnx", np.arange(300)) > 0.999
    assert (tmp_path / "q.onnx").stat().st_size < path.stat().st_size / 2


@pytest.mark.parametrize(("scale", "how"), [(1.0, "softmax in fp32"), (3e4, "and 3 nodes of large values")])
def test_sums_that_fp16_cannot_hold_stay_in_fp32(tmp_path: Path, scale: float, how: str) -> None:
    weights = {"w": random(16, 16), "large": np.float32(scale), "less": np.float32(1 / scale)}
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["stream"]),
        helper.make_node("Add", ["stream", "stream"], ["sum"]),
        helper.make_node("Mul", ["sum", "less"], ["small"]),
        helper.make_node("MatMul", ["small", "w"], ["y"]),
    ]
    source, target = write(tmp_path / "x.onnx", nodes, weights, [16], 16), tmp_path / "h.onnx"
    inputs = [random(8, 16)]
    assert to_half(source, target, inputs).endswith(how)
    assert cosine(source, target, inputs[0]) > 0.999
    assert np.allclose(np.linalg.norm(open_onnx(target)(inputs[0]), axis=1), 1, atol=1e-6)


def test_fp16_keeps_the_cast_of_a_mask(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["mask"]),
        helper.make_node("Cast", ["mask"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ones", "last"], ["count"], keepdims=1),
        helper.make_node("Mul", ["x", "ones"], ["kept"]),
        helper.make_node("Div", ["kept", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "w"], ["y"]),
    ]
    weights = {"w": random(16, 16), "zero": np.float32(0)}
    source, target = write(tmp_path / "x.onnx", nodes, weights, [16], 16), tmp_path / "h.onnx"
    inputs = [random(8, 16)]
    to_half(source, target, inputs)
    assert cosine(source, target, inputs[0]) > 0.999
