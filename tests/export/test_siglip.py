"""SigLIP, SigLIP2 and MetaCLIP 2 are written back bit for bit, and as ONNX bundles that answer as they do."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from clip_core.data.cleaning import Cleaning
from clip_core.errors import UsageError
from clip_core.inference.bundle import read_manifest
from clip_core.inference.clip import CLIPInference
from clip_core.inference.manifest import TEXT
from clip_core.model.published import read_published
from export.bundle import export_bundle
from export.formats import MARKER, export_weights
from tests.export.checkpoints import checkpoint, photographs
from tests.export.test_formats import same_tensors
from tests.models import python
from tests.published_siglip import (
    CAPTIONS,
    metaclip_2_model,
    save_hugging_face,
    save_trunk,
    siglip_model,
    trunk_model,
    trunk_settings,
)

TEXTS = [*CAPTIONS, "A Photo, of a CAT!!", "snow_white & seven dwarfs"]
KINDS = {"v1": "SiglipModel", "v2": "SiglipModel", "metaclip 2": "MetaClip2Model"}


def made(kind: str) -> Any:
    return metaclip_2_model() if kind == "metaclip 2" else siglip_model(kind)


def same_again(out: Path, again: Path) -> None:
    for file in (path for path in out.iterdir() if path.name != MARKER):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_folder_of_transformers_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    reference = made(kind)
    folder = save_hugging_face(tmp_path / "theirs", reference, kind)
    out = export_weights(folder, tmp_path / "out", to="hf")
    same_tensors(load_file(out / "model.safetensors"), reference.state_dict())
    same_again(out, export_weights(out, tmp_path / "again", to="hf"))
    model, info = AutoModel.from_pretrained(out, output_loading_info=True)
    assert type(model).__name__ == KINDS[kind]
    assert not any(info.values()), info
    same_tensors(model.state_dict(), reference.state_dict())
    ours = read_published(folder)
    theirs = AutoTokenizer.from_pretrained(out)(
        TEXTS, padding="max_length", truncation=True, max_length=ours.tokenizer.context_length, return_tensors="np"
    )
    ids = ours.tokenizer.encode(TEXTS)
    np.testing.assert_array_equal(ids, theirs.input_ids[:, : ids.shape[1]])


@pytest.mark.parametrize(("kind", "trunk"), [("v1", "exact GELU"), ("v2", "tanh")])
@torch.no_grad()
def test_a_folder_of_open_clip_comes_back_bit_for_bit(kind: str, trunk: str, tmp_path: Path) -> None:
    settings = trunk_settings(kind, trunk)
    reference = trunk_model(settings)
    folder = save_trunk(tmp_path / "theirs", reference, settings, kind)
    out = export_weights(folder, tmp_path / "out", to="open_clip")
    same_tensors(load_file(out / "open_clip_model.safetensors"), reference.state_dict())
    same_again(out, export_weights(out, tmp_path / "again", to="open_clip"))
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{out}")
    same_tensors(model.state_dict(), reference.state_dict())
    encoder, photos = CLIPInference(folder, "torch", "cpu").encoder, photographs()
    images = model.encode_image(torch.stack([transform(photo) for photo in photos]), normalize=True)
    np.testing.assert_allclose(images.numpy(), encoder.encode_images(photos), atol=1e-5)
    tokens = open_clip.get_tokenizer(f"local-dir:{out}")(TEXTS)
    np.testing.assert_array_equal(tokens.numpy(), encoder.tokenizer.encode(TEXTS))


def test_weights_go_from_open_clip_to_transformers_with_their_cleaning(tmp_path: Path) -> None:
    settings = trunk_settings("v1")
    folder = save_trunk(tmp_path / "theirs", trunk_model(settings), settings)
    out = export_weights(folder, tmp_path / "out", to="hf")
    found, before = read_published(out), read_published(folder)
    assert found.tokenizer.cleaning is Cleaning.CANONICALIZE
    np.testing.assert_array_equal(found.tokenizer.encode(TEXTS), before.tokenizer.encode(TEXTS))
    back = export_weights(out, tmp_path / "back", to="open_clip")
    same_tensors(load_file(back / "open_clip_model.safetensors"), load_file(folder / "open_clip_model.safetensors"))


def test_what_a_format_cannot_say_is_named(tmp_path: Path) -> None:
    folder = save_hugging_face(tmp_path / "siglip", siglip_model(), "v1")
    with pytest.raises(UsageError, match="for open_clip: it has attention pooling in a shape that none of timm's"):
        export_weights(folder, tmp_path / "out", to="open_clip")
    pool = {
        "pooling": "attention", "attention_pooling": {"heads": 4, "mlp_width": 96}, "norm_after_pooling": False,
        "pre_norm": False, "patch_bias": True,
    }  # fmt: skip
    checkpoint(tmp_path / "own", image=pool)
    with pytest.raises(
        UsageError,
        match=r"another pooling head than its blocks have and a projection of its images and a causal text tower and "
        r"pooling at the end_of_text token of the text and no bias in its text projection and no bias of the logits\.$",
    ):
        export_weights(tmp_path / "own", tmp_path / "out", to="hf")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["own", "siglip"]


# ---------------------------------------------------------------- ONNX


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, photo in enumerate(photographs()):
        photo.save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module", params=["transformers", "open_clip", "metaclip 2"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, photos: Path) -> tuple[Path, Path]:
    """Weights and their bundle; read them, do not write to them."""
    folder = tmp_path_factory.mktemp("weights")
    if request.param == "open_clip":
        settings = trunk_settings("v2", "tanh")
        save_trunk(folder / "w", trunk_model(settings), settings, "v2")
    else:
        kind = "v1" if request.param == "transformers" else request.param
        save_hugging_face(folder / "w", made(kind), kind)
    out, _ = export_bundle(folder / "w", folder / "bundle", images=photos)
    return folder / "w", out


def test_a_bundle_answers_as_its_weights_do(bundle: tuple[Path, Path], photos: Path) -> None:
    ours, theirs = (CLIPInference(path).encoder for path in bundle)
    assert (ours.about.backend, theirs.about.backend) == ("torch", "onnx")
    images = sorted(photos.iterdir())
    assert np.abs(ours.encode_images(images) - theirs.encode_images(images)).max() < 1e-4
    assert np.abs(ours.encode_texts(TEXTS) - theirs.encode_texts(TEXTS)).max() < 1e-4
    assert theirs.tokenizer.cleaning == ours.tokenizer.cleaning
    assert read_manifest(bundle[1]).parity.max_abs_diff < 1e-4


def test_the_text_graph_takes_the_whole_context_where_padding_is_read(bundle: tuple[Path, Path]) -> None:
    reads_padding = read_published(bundle[0]).config.text.reads_padding
    session = onnxruntime.InferenceSession(bundle[1] / TEXT)
    assert (session.get_inputs()[0].shape[1] == 64) == reads_padding


def test_example_py_pads_and_cleans_as_the_model_was_trained(
    bundle: tuple[Path, Path], photos: Path, tmp_path: Path
) -> None:
    image = photos / "0.png"
    done = python(bundle[1] / "example.py", image, *TEXTS[:1], *TEXTS[4:], torch_free=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row[1]: float(row[0]) for row in re.findall(r"^\d\.\d{4}  ([+-]\d\.\d{4})  (.*)$", done.stdout, re.M)}
    expected = CLIPInference(bundle[0]).image_text_similarity(Image.open(image), list(rows))
    assert len(rows) == 3
    np.testing.assert_allclose(list(rows.values()), expected, atol=1e-4)
