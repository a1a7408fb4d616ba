"""transformers.js in Node reads a bundle of every kind. Not part of `make test`: `make test-js` runs it.

It needs node and the packages of package.json beside it, which `make test-js` installs.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_core.data.preprocess import preprocess
from clip_core.inference.bundle import read_manifest
from clip_core.inference.clip import CLIPInference
from tests.export.kinds import every_bundle, photos_in

__all__ = ["every_bundle"]
HERE = Path(__file__).parent
TEXTS = ["a red dog", "the", "Two people on the beach, and it's FUN!", "a photo of a cat " * 40]


@pytest.fixture(scope="module")
def answers(every_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], dict[str, Any]]:
    """The bundle, images, and what transformers.js computes."""
    folder = tmp_path_factory.mktemp("javascript")
    images = sorted(photos_in(folder / "photos").iterdir())
    manifest = read_manifest(every_bundle)
    pixels = preprocess(images, manifest.preprocessing)
    inputs = {
        "texts": TEXTS, "images": list(map(str, images)), "pixels": pixels.reshape(len(pixels), -1).tolist(),
        "size": manifest.preprocessing.image_size,
        "padding": "max_length" if every_bundle.name == "siglip_bundle" else True,
    }  # fmt: skip
    (folder / "inputs.json").write_text(json.dumps(inputs))
    done = subprocess.run(
        ["node", HERE / "embed.mjs", every_bundle, folder / "inputs.json"], capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return every_bundle, images, json.loads(done.stdout)


def test_texts_have_our_embeddings_also_truncated_ones(answers: tuple[Path, list[Path], dict[str, Any]]) -> None:
    bundle, _, found = answers
    np.testing.assert_allclose(found["text_embeds"], CLIPInference(bundle).encoder.encode_texts(TEXTS), atol=1e-4)


def test_images_have_our_embeddings(answers: tuple[Path, list[Path], dict[str, Any]]) -> None:
    bundle, images, found = answers
    encoder = CLIPInference(bundle).encoder
    expected = encoder.encode_images(images)
    np.testing.assert_allclose(found["image_embeds"], expected, atol=1e-4)
    assert (np.array(found["prepared_inside"]) * expected).sum(axis=1).min() > 0.9999
    logits = read_manifest(bundle).logit_scale * expected @ encoder.encode_texts(TEXTS).T
    logits += read_manifest(bundle).logit_bias or 0
    np.testing.assert_allclose(found["logits_per_image"], logits, atol=1e-3)


def test_its_own_resize_is_near_ours(answers: tuple[Path, list[Path], dict[str, Any]]) -> None:
    """The second image has the model's size, so that nothing is resized; noise is the hardest of images."""
    bundle, images, found = answers
    preprocessing = read_manifest(bundle).preprocessing
    ours, theirs = preprocess(images, preprocessing), np.array(found["own_pixels"])
    assert ours.shape == theirs.shape
    if preprocessing.image_size == 32 and preprocessing.resize_size in (None, 32):
        np.testing.assert_allclose(theirs[1], ours[1], atol=1e-5)
    apart = np.abs(theirs - ours) * np.array(preprocessing.std)[:, None, None] * 255
    print(bundle.name, [f"{each.mean():.2f} levels in the mean, {each.max():.0f} at most" for each in apart])
