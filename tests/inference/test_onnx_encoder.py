"""The ONNX Runtime encoder: what it says of itself, and what it refuses before it runs."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clip_core.errors import BackendError, BundleError
from clip_core.inference.bundle import read_manifest
from clip_core.inference.onnx_encoder import OnnxEncoder, make_session


def test_its_facts_are_those_of_the_manifest(tiny_bundle: Path) -> None:
    found, manifest = OnnxEncoder(tiny_bundle, note="older").about, read_manifest(tiny_bundle)
    assert (found.step, found.checkpoint, found.scores) == (7, "step_0000007", manifest.source.scores)
    assert (found.logit_scale, found.classes, found.note) == (manifest.logit_scale, manifest.classes, "older")


@pytest.mark.parametrize("device", ["abacus", "cuda", "cuda:1", "cpu:0", "cuda:x", "tensorrt", "coreml", "directml:1"])
def test_another_device_is_never_used_in_place_of_the_named_one(tiny_bundle: Path, device: str) -> None:
    with pytest.raises(
        BackendError, match=r"it may be cpu, cuda, tensorrt|this onnxruntime has no \w+ExecutionProvider"
    ):
        OnnxEncoder(tiny_bundle, device)


def test_threads_may_share_an_encoder(tiny_bundle: Path) -> None:
    encoder = OnnxEncoder(tiny_bundle)
    captions = ["a red circle", "a blue square", "green"]
    pixels = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    expected = encoder.encode_texts(captions), encoder.encode_pixels(pixels)
    with ThreadPoolExecutor(4) as pool:
        for texts, images in pool.map(
            lambda _: (encoder.encode_texts(captions), encoder.encode_pixels(pixels)), range(12)
        ):
            assert np.array_equal(texts, expected[0])
            assert np.array_equal(images, expected[1])


def test_texts_of_any_length_come_back_in_their_order(tiny_bundle: Path) -> None:
    encoder = OnnxEncoder(tiny_bundle)
    captions = [f"{'a ' * (number * 7 % 20)}circle {number}" for number in range(150)]
    embeds = encoder.encode_texts(captions)
    for row in (0, 1, 77, 149):
        assert np.allclose(embeds[row], encoder.encode_texts([captions[row]])[0], atol=1e-6)


def test_bytes_that_are_no_model_are_one_sentence() -> None:
    with pytest.raises(BundleError, match=r"does not accept x\.onnx") as caught:
        make_session(b"no model", "x.onnx")
    assert "\n" not in str(caught.value)
