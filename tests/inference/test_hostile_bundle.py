"""A stranger's bundle: wrong vectors, endless graphs, lying sizes and escape bytes end in one printable sentence."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clip_core.errors import ClipError
from clip_core.inference.bundle import open_bundle
from clip_core.inference.clip import CLIPInference
from clip_core.inference.manifest import TEXT, VISION
from clip_core.inference.memory_limit import available_memory
from clip_core.inference.onnx_encoder import try_out
from clip_core.run.paths import MANIFEST
from tests.faults.table import LONG
from tests.inference.test_bundle import edit_manifest, edit_onnx, relist
from tests.models import images_of

EVIL = "\x1b[31mevil\x1b]0;owned\x07\x9b\u202e"


def add(model: onnx.ModelProto, name: str, values: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def after(bundle: Path, operator: str, *values: np.ndarray, name: str = "last", only: bool = False, **traits) -> None:
    """One more node at the end of the text tower: operator(embeds, *values), or operator(*values) alone."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["raw" if each == "text_embeds" else each for each in node.output]
            node.input[:] = ["raw" if each == "text_embeds" else each for each in node.input]
        more = [add(model, f"{EVIL}{n}", value) for n, value in enumerate(values)]
        inputs = more if only else ["raw", *more]
        model.graph.node.append(helper.make_node(operator, inputs, ["text_embeds"], name=name, **traits))

    edit_onnx(bundle, change)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def loop_for_ever(bundle: Path) -> None:
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["go"], value=true),
            helper.make_node("Identity", ["before"], ["behind"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("behind", TensorProto.FLOAT, None),
        ],
    )

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["raw" if each == "text_embeds" else each for each in node.output]
        add(model, "true", np.array(True))
        model.graph.node.append(helper.make_node("Loop", ["", "true", "raw"], ["text_embeds"], body=body))

    edit_onnx(bundle, change)


def cut_a_row(bundle: Path) -> None:
    after(bundle, "Slice", ints(0), ints(1))


def expand(bundle: Path) -> None:
    """One number to half as many bytes again as there are."""
    size = ints((available_memory() or 0) // 40, 16)
    after(bundle, "Expand", np.zeros(1, np.float32), size, only=True)


def fill_memory(bundle: Path) -> None:
    """8 GB on the way to an embedding of the right shape."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["raw" if each == "text_embeds" else each for each in node.output]
        names = [add(model, "zero", np.float32([0])), add(model, "size", ints(2**31))]
        model.graph.node.append(helper.make_node("Expand", names, ["large"]))
        model.graph.node.append(helper.make_node("ReduceMax", ["large"], ["most"], keepdims=0))
        model.graph.node.append(helper.make_node("Add", ["raw", "most"], ["text_embeds"]))

    edit_onnx(bundle, change)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (lambda b: after(b, "Mul", np.float32([np.nan])), "not finite"),
    "not of length 1": (lambda b: after(b, "Mul", np.float32([2])), "not of length 1"),
    "zero": (lambda b: after(b, "Mul", np.float32([0])), "not of length 1"),
    "not one row per input": (cut_a_row, r"shape \(1, 16\) in place of \(2, 16\)"),
    "an escape in a node that fails": (lambda b: after(b, "Reshape", ints(7, 16), name=EVIL), "could not compute"),
    "4 TB": (
        lambda b: after(b, "ConstantOfShape", ints(10**12), only=True),
        "could not compute|other inputs or outputs|of memory",
    ),
    "more memory than there is": (expand, "could not compute|of memory"),
    "8 GB inside": (fill_memory, "could not compute|of memory"),
    "an endless loop": (loop_for_ever, "has a Loop, which may run without end"),
}


@pytest.mark.fault("hostile bundle")
def test_mutated_bytes_of_any_file_are_one_sentence_or_do_no_harm(
    own_bundle: Path,
    tiny_run: Path,
    capfd: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    """Where someone made the checksums fit: names that are not UTF-8, other operators, other shapes."""
    image, generator = images_of(tiny_run)[0], random.Random(1)
    original = {name: (own_bundle / name).read_bytes() for name in (TEXT, VISION, "tokenizer.json", MANIFEST)}
    turns = 80 if LONG else 12
    for turn in range(turns):
        name = [TEXT, VISION, "tokenizer.json", MANIFEST][turn % 4]
        content = bytearray(original[name])
        for _ in range(generator.choice([1, 2, 8])):
            place = generator.choice([generator.randrange(3000), -generator.randrange(1, 3000)]) % len(content)
            content[place : place + generator.randrange(2)] = bytes([generator.randrange(256)])
        (own_bundle / name).write_bytes(content)
        if name != MANIFEST:
            relist(own_bundle, name)
        try:
            CLIPInference(own_bundle).image_text_similarity(image, ["a", "b"])
        except ClipError as error:
            assert str(error).isprintable()  # noqa: PT017
        for changed, before in original.items():
            (own_bundle / changed).write_bytes(before)
    assert "EP Error" not in capfd.readouterr().out
    record_property("injected", turns)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.fault("hostile bundle")
def test_a_graph_that_does_not_do_what_an_encoder_does_is_refused(
    own_bundle: Path, tiny_run: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, message = HOSTILE[name]
    spoil(own_bundle)
    with pytest.raises(ClipError, match=message) as caught:
        CLIPInference(own_bundle).image_text_similarity(images_of(tiny_run)[0], ["a", "b"])
    assert str(caught.value).isprintable()
    assert "".join(capfd.readouterr()).replace("\n", "").isprintable()  # of native code too


def multiply_for_hours(bundle: Path, of_constants: bool) -> None:
    """Thousands of products of large matrices, which do not depend on the input or do."""

    def change(model: onnx.ModelProto) -> None:
        after_all = [node for node in model.graph.node if "text_embeds" in node.output]
        after_all[0].output[:] = ["raw" if each == "text_embeds" else each for each in after_all[0].output]
        add(model, "shape", ints(1000, 1000))
        start = add(model, "one", np.float32([1e-3]))
        nodes = [] if of_constants else [helper.make_node("ReduceMax", ["raw"], ["most"], keepdims=0)]
        nodes.append(helper.make_node("Expand", [start if of_constants else "most", "shape"], ["m0"]))
        nodes += [helper.make_node("MatMul", [f"m{n}", "m0"], [f"m{n + 1}"]) for n in range(3_000)]
        nodes += [
            helper.make_node("ReduceMean", ["m3000"], ["mean"], keepdims=0),
            helper.make_node("Add", ["raw", "mean"], ["text_embeds"]),
        ]
        model.graph.node.extend(nodes)

    edit_onnx(bundle, change)


@pytest.mark.fault("hostile bundle")
@pytest.mark.parametrize("of_constants", [True, False])
def test_a_graph_that_computes_for_hours_is_stopped_in_load_and_in_run(own_bundle: Path, of_constants: bool) -> None:
    multiply_for_hours(own_bundle, of_constants)
    started = time.monotonic()
    with pytest.raises(ClipError, match=r"computed for more than 0\.5 s and was stopped"):
        try_out(open_bundle(own_bundle), seconds=0.5)
    assert time.monotonic() - started < 60


MANIFESTS: dict[str, Callable[[dict], object]] = {
    "a size that no file has": lambda m: m["files"][TEXT].update(size=10**13),
    "a file named a thousand times": lambda m: m["files"].update(
        {f"{'./' * n}{TEXT}": m["files"][TEXT] for n in range(1000)}
    ),
    "a negative size": lambda m: m["files"][TEXT].update(size=-1),
    "a mean out of range": lambda m: m["preprocessing"].update(mean=[1e300] * 3),
    "no deviation": lambda m: m["preprocessing"].update(std=[0, 0.2, 0.2]),
    "NaN": lambda m: m["preprocessing"].update(mean=[float("nan")] * 3),
    "an infinite scale": lambda m: m.update(logit_scale=1e400),
    "an endless context": lambda m: m.update(context_length=10**12),
    "a threshold that no cosine has": lambda m: m["threshold"].update(value=1e300),
}


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.fault("hostile bundle")
def test_a_number_out_of_range_is_refused(own_bundle: Path, name: str) -> None:
    edit_manifest(own_bundle, MANIFESTS[name])
    with pytest.raises(
        ClipError, match=r"manifest\.json is damaged at|not the file that its manifest describes"
    ) as caught:
        CLIPInference(own_bundle)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 200_000, "\x1b[31m", '{"files": ' + "1" * 10_000 + "}"])
@pytest.mark.fault("hostile bundle")
def test_a_manifest_that_is_no_manifest_is_refused(own_bundle: Path, content: str) -> None:
    (own_bundle / MANIFEST).write_text(content)
    with pytest.raises(ClipError, match="damaged") as caught:
        CLIPInference(own_bundle)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [MANIFEST, "config.json", "preprocessor_config.json", "tokenizer_config.json", TEXT])
@pytest.mark.fault("hostile bundle")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(own_bundle: Path, name: str) -> None:
    (own_bundle / name).unlink()
    os.mkfifo(own_bundle / name)
    with pytest.raises(ClipError, match="not a regular file"):
        CLIPInference(own_bundle)
