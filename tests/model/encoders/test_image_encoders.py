"""Image encoders give what timm, transformers and ONNX Runtime give."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import load_file

from clip_core.errors import UsageError
from clip_core.model.encoders.resolve import load_encoder, load_image_encoder, load_text_encoder, resolve_encoder
from tests.encoders import SIDE, image_folder, image_model, onnx_encoder, timm_folder
from tests.models import make_run
from tests.published import images, open_clip_model, save_open_clip

# kind -> tokens before the patches
KINDS = {
    "vit": 1, "deit": 2, "dinov2": 1, "dinov2_with_registers": 3, "dinov3_vit": 3, "dinov3_convnext": 1, "convnext": 0,
    "convnextv2": 0, "siglip": 0, "siglip_vision_model": 0, "clip_vision_model": 1,
}  # fmt: skip


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    name = str(image_folder(tmp_path / kind, kind))
    encoder = load_image_encoder(name)
    model: Any = image_model(kind)
    found = (model.vision_model if kind == "siglip" else model)(pixel_values=images())
    tokens = found.last_hidden_state
    pooled = tokens[:, 0] if kind in ("vit", "deit") else found.pooler_output
    with torch.no_grad():
        same(encoder(images()), pooled)
        patches = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens[:, KINDS[kind] :]
        same(encoder.token_features(images()), patches)
    assert encoder.info.feature_size == 16
    assert len(encoder.blocks()) == (4 if "convnext" in kind else 2)
    assert resolve_encoder(name, "image") == encoder.info
    assert load_encoder(encoder.info).info == encoder.info


def test_patches_and_the_class_token_are_features_of_their_own(tmp_path: Path) -> None:
    name = str(image_folder(tmp_path / "vit", "vit"))
    pooled, token, patches = (load_image_encoder(name, features=how) for how in ("pooled", "class_token", "patches"))
    same(token(images()), pooled(images()))
    same(patches(images()), pooled.token_features(images()).mean(dim=1))
    assert len({each.info.identity for each in (pooled, token, patches)}) == 3


def test_another_image_size_interpolates_the_positions(tmp_path: Path) -> None:
    name = str(image_folder(tmp_path / "vit", "vit"))
    encoder = load_image_encoder(name, image_size=48)
    assert encoder.info.preprocessing is not None
    assert (encoder.info.image_size, encoder.info.preprocessing.resize_size) == (48, 56)
    assert encoder.token_features(images(48)).shape == (4, 9, 16)


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "mobilenetv3_small_050", "resnet10t"])
def test_a_folder_of_timm_gives_its_features_without_the_classifier(architecture: str, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "timm", architecture)
    encoder = load_image_encoder(str(folder))
    arguments = (
        {}
        if architecture != "vit_tiny_patch16_224"
        else {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": SIDE, "patch_size": 8}
    )
    theirs = timm.create_model(architecture, num_classes=5, **arguments).eval()
    theirs.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        same(encoder(images()), theirs.forward_head(theirs.forward_features(images()), pre_logits=True))
    assert encoder.info.licence == "apache-2.0"
    assert load_encoder(encoder.info).info == encoder.info
    assert len(encoder.blocks()) > 1
    assert resolve_encoder(str(folder), "image") == encoder.info
    file = load_image_encoder(f"timm:{architecture}@{folder / 'model.safetensors'}") if not arguments else None
    if file is not None:
        same(file(images()), encoder(images()))


@pytest.mark.parametrize("flat", [True, False])
def test_an_onnx_file_with_its_data_beside_it_gives_what_onnx_runtime_gives(flat: bool, tmp_path: Path) -> None:
    path = onnx_encoder(tmp_path / "encoder.onnx", external=True, flat=flat)
    encoder = load_image_encoder(str(path), preprocessing="imagenet")
    session = onnxruntime.InferenceSession(str(path))
    expected = session.run(None, {"pixels": images().numpy()})[0].reshape(4, 6)
    np.testing.assert_allclose(encoder(images()).numpy(), expected, atol=1e-6)
    assert (encoder.info.feature_size, encoder.blocks()) == (6, [])
    assert load_encoder(encoder.info).info.identity == encoder.info.identity


def test_the_towers_of_a_clip_are_encoders(tmp_path: Path) -> None:
    model = open_clip_model()
    folder = save_open_clip(tmp_path / "clip", model)
    image, text = load_image_encoder(str(folder)), load_text_encoder(str(folder))
    with torch.no_grad():
        same(image(images()), model.encode_image(images(), normalize=True))
    assert text.tokenizer is not None
    assert (image.info.feature_size, text.info.context_length, len(text.blocks())) == (32, 16, 2)
    assert resolve_encoder(str(folder), "image") == image.info


def test_a_run_is_an_encoder_of_both_sides(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    image, text = load_image_encoder(str(run)), load_text_encoder(str(run))
    assert (image.info.source, image.info.feature_size, text.info.feature_size) == ("clip", 16, 16)
    assert load_encoder(text.info).info == text.info
    with pytest.raises(UsageError, match="has pooled features only"):
        load_image_encoder(str(run), features="patches")
