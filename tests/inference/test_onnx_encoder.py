"""The ONNX Runtime encoder: what it says of itself, and what it refuses before it runs."""

from pathlib import Path

import pytest

from clip_core.errors import BackendError, BundleError
from clip_core.inference.bundle import read_manifest
from clip_core.inference.onnx_encoder import OnnxEncoder, make_session


def test_its_facts_are_those_of_the_manifest(tiny_bundle: Path) -> None:
    found, manifest = OnnxEncoder(tiny_bundle, note="older").about, read_manifest(tiny_bundle)
    assert (found.step, found.checkpoint, found.scores) == (7, "step_0000007", manifest.source.scores)
    assert (found.logit_scale, found.classes, found.note) == (manifest.logit_scale, manifest.classes, "older")


@pytest.mark.parametrize("device", ["abacus", "cuda", "cuda:1"])
def test_another_device_is_never_used_in_place_of_the_named_one(tiny_bundle: Path, device: str) -> None:
    with pytest.raises(BackendError, match=r"abacus|CUDAExecutionProvider"):
        OnnxEncoder(tiny_bundle, device)


def test_bytes_that_are_no_model_are_one_sentence() -> None:
    with pytest.raises(BundleError, match=r"does not accept x\.onnx") as caught:
        make_session(b"no model", "x.onnx")
    assert "\n" not in str(caught.value)
