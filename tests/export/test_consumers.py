"""Software that nobody here wrote reads a bundle of every kind: a bare ONNX Runtime, and transformers.

onnx.checker is in test_combined.py, immich in test_immich.py, transformers.js in tests/javascript.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import transformers

from clip_core.data.preprocess import preprocess
from clip_core.data.tokenizer import Tokenizer
from clip_core.inference.bundle import read_manifest
from clip_core.inference.clip import CLIPInference
from clip_core.inference.manifest import TEXT
from tests.export.checkpoints import photographs
from tests.export.kinds import every_bundle, photos_in

__all__ = ["every_bundle"]
TEXTS = ["a red dog", "the", "Two people on the beach, and it's FUN!", "a photo of a cat " * 40]
NEEDED = ("numpy", "numpy.libs", "onnxruntime", "PIL", "pillow.libs", "tokenizers")


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four packages that example.py needs, and nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    packages = Path(onnxruntime.__file__).parent.parent
    for name in NEEDED:
        if (packages / name).is_dir():  # the .libs are of some builds only
            (folder / name).symlink_to(packages / name)
    return folder


def bare_python(packages: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A child without site-packages: it can import the standard library and `packages`."""
    environment = {"PYTHONPATH": str(packages), "PATH": os.environ["PATH"], "HOME": str(packages.parent)}
    return subprocess.run(
        [sys.executable, "-S", "-B", *map(str, arguments)], env=environment, cwd=packages, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip


def test_the_environment_is_empty(empty_environment: Path) -> None:
    script = "import importlib.util as u; print([n for n in {} if u.find_spec(n)])"
    others = ["torch", "onnx", "pydantic", "transformers", "clip_core", "safetensors", "pytest"]
    assert bare_python(empty_environment, "-c", script.format(others)).stdout == "[]\n"


def test_example_py_needs_four_packages(every_bundle: Path, empty_environment: Path, tmp_path: Path) -> None:
    image = sorted(photos_in(tmp_path / "photos").iterdir())[3]
    done = bare_python(empty_environment, every_bundle / "example.py", image, *TEXTS)
    assert done.returncode == 0, done.stderr
    rows = {row[1]: float(row[0]) for row in re.findall(r"^\d\.\d{4}  ([+-]\d\.\d{4})  (.*)$", done.stdout, re.M)}
    expected = dict(zip(TEXTS, CLIPInference(every_bundle).image_text_similarity(image, TEXTS).tolist(), strict=True))
    assert len(rows) == len(TEXTS)
    assert rows == pytest.approx(expected, abs=1e-4)


def test_transformers_reads_config_tokenizer_and_processor(every_bundle: Path) -> None:
    manifest = read_manifest(every_bundle)
    config = transformers.AutoConfig.from_pretrained(every_bundle)
    assert config.model_type == ("siglip" if every_bundle.name == "siglip_bundle" else "clip")
    read = transformers.AutoTokenizer.from_pretrained(every_bundle)
    assert read.model_max_length == manifest.context_length
    ours = Tokenizer.load(every_bundle / "tokenizer.json").encode(TEXTS)
    padding = "max_length" if config.model_type == "siglip" else True
    theirs = read(TEXTS, padding=padding, truncation=True, return_tensors="np")
    lengths = (np.cumsum(ours == manifest.end_token, axis=1) == 0).sum(axis=1) + 1
    for row, other, length in zip(ours, theirs.input_ids, lengths, strict=True):
        np.testing.assert_array_equal(row[:length], other[:length])
    session = onnxruntime.InferenceSession(every_bundle / TEXT)
    embeddings = session.run(None, {"input_ids": theirs.input_ids.astype(np.int64)})[0]
    np.testing.assert_allclose(embeddings, CLIPInference(every_bundle).encoder.encode_texts(TEXTS), atol=1e-5)


def test_transformers_prepares_images_alike_but_for_the_corner_of_the_crop(every_bundle: Path) -> None:
    """Its crop rounds the corner down, ours as the model was trained."""
    preprocessing = read_manifest(every_bundle).preprocessing.model_copy(update={"crop_rounding": "floor"})
    processor = transformers.AutoImageProcessor.from_pretrained(every_bundle, backend="pil")
    theirs = processor(images=photographs(), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(theirs, preprocess(photographs(), preprocessing), atol=2e-6)


def test_the_tokenizer_config_names_tokens_of_the_tokenizer(every_bundle: Path) -> None:
    said = json.loads((every_bundle / "tokenizer_config.json").read_text())
    inner = Tokenizer.load(every_bundle / "tokenizer.json")._inner
    named = [said[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token") if name in said]
    assert all(inner.token_to_id(name) is not None for name in named)
    assert "!" not in named
