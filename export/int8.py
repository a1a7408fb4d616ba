"""int8 weights and activations, made in the ways that ONNX Runtime knows, the best chosen by measurement.

Dynamic: matrix products whose activations are quantised when they run, by their own range. Static: products and
convolutions, by ranges seen on calibration inputs. Weights are signed, with a scale for each output channel. Dynamic
int8 leaves convolutions alone: it knows no scale per channel for them, which destroys depthwise ones.

Shapes: N inputs, D embedding, V vocabulary, W width.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from clip_core.errors import BackendError
from clip_core.files import scratch_folder
from clip_core.scoring import FloatArray
from export.convert import save_onnx
from export.sessions import least_and_mean_cosine, open_every_output, open_onnx

GOOD = 0.999  # least cosine to fp32 that is accurate enough to go by speed
_KEPT = (8, 4)  # one in so many of the layers, those that quantise worst, stays in fp32 where nothing is GOOD
_PRODUCTS = ("MatMul", "Gemm")
_TABLE = 256  # rows from which an embedding table is quantised

Inputs = Sequence[NDArray[np.float32] | NDArray[np.int64]]  # batches


@dataclass(frozen=True)
class Candidate:
    """One way, what it reaches on inputs that it was not calibrated on, and its seconds for them."""

    how: str
    path: Path
    least_cosine: float
    mean_cosine: float
    seconds: float


def quantise(source: Path, target: Path, inputs: Inputs, say: Callable[[str], None]) -> str:
    """Write an int8 version of an ONNX file: accurate first, then fast.

    Args:
        source: in fp32.
        inputs: batches for calibration (the first half) and for the choice (the second).
        say: called with a line for each way that was tried.
    Returns:
        How it was made: `dynamic int8, 10 of 73 layers in fp32`.
    Raises:
        BackendError: if no way works.
    """
    model = onnx.load(source)
    ways, input_name = _ways(model), model.graph.input[0].name
    half = max(1, len(inputs) // 2)
    calibration, validation = inputs[:half], inputs[half:] or inputs
    exact = open_onnx(source)
    expected = [exact(batch) for batch in validation]
    errors = _activation_errors(model, input_name, calibration[0])
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        found: list[Candidate] = []
        for share in (0, *_KEPT):
            for way, layers in ways.items():
                ranked = sorted(layers, key=lambda node: errors.get(node.input[0], 0.0), reverse=True)
                kept = [node.name for node in ranked[: -(-len(layers) // share)]] if share else []
                path = Path(scratch) / f"{way}-{share}.onnx"
                how = f"{way} int8" + (f", {len(kept)} of {len(layers)} layers in fp32" if kept else "")
                try:
                    _make(way, model, path, kept, input_name, calibration)
                    found.append(_evaluate(how, path, validation, expected))
                except Exception as error:  # the library's tools raise anything on a graph that they do not know
                    say(f"  {source.name}, {how}: not possible ({type(error).__name__})")
                    continue
                tried = found[-1]
                say(f"  {source.name}, {how}: least cosine {tried.least_cosine:.5f}, {tried.seconds * 1e3:.0f} ms")
            if any(each.least_cosine >= GOOD for each in found):
                break
        if not found:
            raise BackendError(f"{source.name} cannot be quantised to int8; leave int8 out of --precision.")
        chosen = choose(found)
        save_onnx(onnx.load(chosen.path), target)
    return chosen.how


def choose(found: Sequence[Candidate]) -> Candidate:
    """The fastest of those that are accurate enough; where none is, the most accurate."""
    good = [each for each in found if each.least_cosine >= GOOD]
    if good:
        return min(good, key=lambda each: each.seconds)
    return max(found, key=lambda each: each.mean_cosine)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration inputs, one batch after another."""

    def __init__(self, name: str, inputs: Inputs) -> None:
        self._feeds = iter([{name: batch} for batch in inputs])

    def get_next(self) -> dict[str, NDArray[np.float32] | NDArray[np.int64]] | None:
        return next(self._feeds, None)


def _make(way: str, model: onnx.ModelProto, path: Path, kept: list[str], input_name: str, calibration: Inputs) -> None:
    source = onnx.ModelProto()
    source.CopyFrom(model)
    with _quiet():
        if way == "dynamic":
            quantize_dynamic(
                source,
                path,
                op_types_to_quantize=list(_PRODUCTS),
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*kept, *(f"{name}_MatMul" for name in kept)],  # what it makes of a Gemm
                extra_options={"MatMulConstBOnly": True},
            )
        else:
            quantize_static(
                source,
                path,
                _Reader(input_name, calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*_PRODUCTS, "Conv"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=kept,
                extra_options={"MatMulConstBOnly": True},
            )
    made = onnx.load(path)
    quantise_tables(made)
    used = {node.domain for node in made.graph.node} | {""}
    imports = [each for each in made.opset_import if each.domain in used]
    del made.opset_import[:]
    made.opset_import.extend(imports)
    onnx.save(made, path)


def _evaluate(how: str, path: Path, validation: Inputs, expected: Sequence[FloatArray]) -> Candidate:
    run = open_onnx(path)
    found, seconds = [], 0.0
    for batch in validation:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            out = run(batch)
            times.append(time.perf_counter() - started)
        found.append(out)
        seconds += min(times)
    return Candidate(how, path, *least_and_mean_cosine(found, expected), seconds)


def quantise_tables(model: onnx.ModelProto) -> None:
    """Replace embedding tables by int8 rows with a scale each: Gather -> Cast, times the gathered scale."""
    graph = model.graph
    tables = {each.name: each for each in graph.initializer if each.data_type == TensorProto.FLOAT}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
        whole = table is not None and len(table.dims) == 2 and table.dims[0] >= _TABLE and axis == 0
        if table is None or not whole or len(readers[table.name]) > 1:
            nodes.append(node)
            continue
        values = numpy_helper.to_array(table)  # (V, W)
        scale = np.maximum(np.abs(values).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
        rows = np.rint(values / scale).astype(np.int8)
        name = table.name
        graph.initializer.remove(table)
        graph.initializer.append(numpy_helper.from_array(rows, f"{name}/int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}/scale"))
        out = node.output[0]
        nodes += [
            helper.make_node("Gather", [f"{name}/int8", node.input[1]], [f"{out}/rows"], f"{out}/rows", axis=0),
            helper.make_node("Cast", [f"{out}/rows"], [f"{out}/float"], f"{out}/float", to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}/scale", node.input[1]], [f"{out}/scale"], f"{out}/scale", axis=0),
            helper.make_node("Mul", [f"{out}/float", f"{out}/scale"], [out], f"{out}/scaled"),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _ways(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The ways to quantise a graph, with the layers that each of them quantises."""
    weights = {each.name: int(np.prod(each.dims)) for each in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in (*_PRODUCTS, "Conv") and node.input[1] in weights]
    products = [node for node in layers if node.op_type in _PRODUCTS]
    sizes = {node.name: weights[node.input[1]] for node in layers}
    most = 2 * sum(sizes[node.name] for node in products) >= sum(sizes.values())  # else it would be int8 by name only
    return ({"dynamic": products} if most else {}) | {"static": layers}


def _activation_errors(
    model: onnx.ModelProto, input_name: str, batch: NDArray[np.float32] | NDArray[np.int64]
) -> dict[str, float]:
    """For the input of each layer, the error that one scale for all of its values makes.

    Channels with outliers, which trained Transformers have, leave few of the 256 steps to all others.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    layers = _ways(model)["static"]
    axes = {node.input[0]: 1 if node.op_type == "Conv" else -1 for node in layers}  # of the channels
    inside = [name for name in axes if name != input_name]
    if not inside:
        return {}
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inside)
    with scratch_folder("export") as folder:
        path = folder / "probe.onnx"
        save_onnx(probe, path)
        values = open_every_output(path)(batch)
    return {name: _range_error(each, axes[name]) for name, each in zip(inside, values, strict=True)}


def _range_error(values: FloatArray, axis: int) -> float:
    """The error of rounding to 256 steps between the least and the largest value, relative to each channel's size.

    Args:
        axis: of the channels. The mean over them counts: an outlier channel is exact while all others are lost.
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = max(high - low, 1e-12) / 255
    channels = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    lost = np.linalg.norm(np.rint(channels / step) * step - channels, axis=1)
    return float((lost / np.maximum(np.linalg.norm(channels, axis=1), 1e-12)).mean())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that the library logs for each file."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
