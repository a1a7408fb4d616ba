"""PyTorch and ONNX Runtime say the same: every architecture, batch 1, 3 and 8, every token length, real images."""

from pathlib import Path

import numpy as np
import pytest

from clip_core.inference.clip import CLIPInference
from export.bundle import export_bundle
from tests.models import images_of, make_run

ARCHITECTURES = {
    "patches": {},
    "conv_stem": {"stem": "conv", "patch_size": 8},
    "class_token": {"pooling": "class_token", "pre_norm": True, "patch_bias": False},
    "quick_gelu": {"activation": "quick_gelu", "patch_size": 8},
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CLIPInference, CLIPInference]:
    run = make_run(
        tmp_path_factory.mktemp("parity") / request.param, seed=3, image=ARCHITECTURES[request.param],
        tokenizer="bpe" if request.param == "quick_gelu" else "char",
    )  # fmt: skip
    export_bundle(run)
    return CLIPInference(run, "torch", "cpu"), CLIPInference(run, "onnx")


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_images(both: tuple[CLIPInference, CLIPInference], tiny_run: Path, batch: int) -> None:
    images = images_of(tiny_run)[:batch]
    ours, theirs = (clip.encoder.encode_images(images) for clip in both)
    assert ours.shape == theirs.shape == (batch, 16)
    assert np.abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("length", [0, 1, 7, 22, 400])
def test_captions(both: tuple[CLIPInference, CLIPInference], batch: int, length: int) -> None:
    captions = [("a red circle and a blue square " * 20)[n : n + length] for n in range(batch)]
    ours, theirs = (clip.encoder.encode_texts(captions) for clip in both)
    assert ours.shape == theirs.shape == (batch, 16)
    assert np.abs(ours - theirs).max() < 1e-4


def test_the_nearest_caption_of_every_image(both: tuple[CLIPInference, CLIPInference], tiny_run: Path) -> None:
    captions = list(both[0].encoder.about.classes or ())
    for image in images_of(tiny_run):
        ours, theirs = (clip.image_text_similarity(image, captions) for clip in both)
        assert ours[theirs.argmax()] >= ours.max() - 1e-6
