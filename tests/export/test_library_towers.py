"""Towers of timm and transformers are written back bit for bit, and as ONNX bundles that answer as they do."""

from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from clip_core.errors import UsageError
from clip_core.inference.clip import CLIPInference
from clip_core.inference.manifest import TEXT
from clip_core.model.published import read_published
from export.bundle import export_bundle
from export.formats import export_weights
from tests.export.checkpoints import photographs
from tests.export.test_formats import same_tensors
from tests.export.test_siglip import TEXTS, same_again
from tests.published_towers import write_model

PAIRS = [("MobileCLIP (FastViT)", "XLM-R, mean, MLP"), (None, "BERT, pooler, no projection"), ("EVA02", None)]


@pytest.mark.parametrize(("vision", "text"), PAIRS)
@torch.no_grad()
def test_a_folder_comes_back_bit_for_bit(vision: str | None, text: str | None, tmp_path: Path) -> None:
    reference = write_model(tmp_path / "m", vision, text, init_logit_bias=-9.5, quick_gelu=vision is None)
    out = export_weights(tmp_path / "m", tmp_path / "out", to="open_clip")
    same_tensors(load_file(out / "open_clip_model.safetensors"), reference.state_dict())
    same_again(out, export_weights(out, tmp_path / "again", to="open_clip"))
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{out}")
    same_tensors(model.eval().state_dict(), reference.state_dict())
    encoder, photos = CLIPInference(tmp_path / "m", "torch", "cpu").encoder, photographs()
    images = model.encode_image(torch.stack([transform(photo) for photo in photos]), normalize=True)
    np.testing.assert_allclose(images.numpy(), encoder.encode_images(photos), atol=1e-5)
    tokens = open_clip.get_tokenizer(f"local-dir:{out}")(TEXTS)
    np.testing.assert_allclose(model.encode_text(tokens, True).numpy(), encoder.encode_texts(TEXTS), atol=1e-5)


def test_transformers_has_no_clip_with_such_towers(tmp_path: Path) -> None:
    write_model(tmp_path / "m", "ConvNeXt", None)
    with pytest.raises(UsageError, match="cannot be written for transformers: it has convnext_tiniest as a tower"):
        export_weights(tmp_path / "m", tmp_path / "out", to="hf")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights and their bundle."""
    folder = tmp_path_factory.mktemp("weights")
    write_model(folder / "m", "MobileCLIP (FastViT)", "XLM-R, mean, MLP")
    photos = folder / "photos"
    photos.mkdir()
    for number, photo in enumerate(photographs()):
        photo.save(photos / f"{number}.png")
    return folder / "m", export_bundle(folder / "m", folder / "bundle", images=photos)[0]


def test_a_bundle_answers_as_its_weights_do(bundle: tuple[Path, Path]) -> None:
    ours, theirs = (CLIPInference(path).encoder for path in bundle)
    photos = photographs()
    assert np.abs(ours.encode_images(photos) - theirs.encode_images(photos)).max() < 1e-4
    assert np.abs(ours.encode_images(photos[:1]) - theirs.encode_images(photos[:1])).max() < 1e-4
    assert np.abs(ours.encode_texts(TEXTS) - theirs.encode_texts(TEXTS)).max() < 1e-4
    for text in TEXTS:  # whose batch has no padding
        assert np.abs(ours.encode_texts([text]) - theirs.encode_texts([text])).max() < 1e-4


def test_the_mask_is_computed_inside_so_padding_changes_nothing(bundle: tuple[Path, Path]) -> None:
    session = onnxruntime.InferenceSession(bundle[1] / TEXT)
    ids = read_published(bundle[0]).tokenizer.encode(["a photo of a cat"])
    padded = np.pad(ids, ((0, 0), (0, 7)), constant_values=1)
    plain, longer = (session.run(None, {"input_ids": each})[0] for each in (ids, padded))
    np.testing.assert_allclose(plain, longer, atol=1e-6)
