"""example.py of a bundle, without clip-tui and without PyTorch."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from clip_core.inference.clip import CLIPInference
from tests.models import python


def test_example_py_gives_the_numbers_of_clip_infer_without_torch(tiny_bundle: Path, tmp_path: Path) -> None:
    image = tmp_path / "tall and transparent.png"
    pixels = np.random.default_rng(0).integers(0, 255, (90, 61, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    Image.fromarray(pixels).save(image, exif=exif)
    texts = ["a red circle", "a blue square", "", "<|endoftext|> 漢字"]
    done = python(tiny_bundle / "example.py", image, *texts, torch_free=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\d\.\d{4})  ([+-]\d\.\d{4})  (.*)$", done.stdout, re.MULTILINE)
    clip = CLIPInference(tiny_bundle)
    expected = clip.zero_shot_classification(image, texts, "{}")
    assert [row[2] for row in rows] == [name for name, _ in expected]
    np.testing.assert_allclose([float(row[0]) for row in rows], [value for _, value in expected], atol=1e-4)
    cosines = dict(zip(texts, clip.image_text_similarity(image, texts).tolist(), strict=True))
    np.testing.assert_allclose([float(row[1]) for row in rows], [cosines[row[2]] for row in rows], atol=1e-4)


def test_example_py_says_how_it_is_called(tiny_bundle: Path) -> None:
    done = python(tiny_bundle / "example.py")
    assert done.returncode == 1
    assert done.stderr.startswith("usage:")
    done = python(tiny_bundle / "example.py", "nowhere.jpg", "a cat")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "nowhere.jpg" in done.stderr
