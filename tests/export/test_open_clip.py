"""What is written for open_clip is the same model there."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from clip_core.data.tokenizer import train_bpe, train_characters
from clip_core.errors import UsageError
from clip_core.inference.torch_encoder import TorchEncoder
from export.formats import export_weights
from tests.export.checkpoints import CAPTIONS, CONTEXT, MEAN, checkpoint, clip_bpe, photographs, small_clip_bpe, unit


@pytest.mark.parametrize(
    "traits",
    [
        {},
        {"image": {"activation": "quick_gelu"}, "text": {"activation": "quick_gelu"}},
        {"image": {"activation": "gelu_tanh", "norm_eps": 1e-4}, "text": {"mlp_width": 96}},
        {"image": MEAN},
        {"image": {**MEAN, "norm_after_pooling": False, "pre_norm": False, "mlp_width": 86}},
        {"text": {"pooling": "last", "causal": False, "projection_bias": True}, "tokenizer": clip_bpe(True)},
        {"text": {"pooling": "first", "causal": False}, "tokenizer": clip_bpe(True, "end"), "logit_bias": True},
        {"preprocessing": {"resize_mode": "longest", "interpolation": "bilinear", "fill": 127}},
        {"preprocessing": {"resize_mode": "squash", "std": (0.5, 0.5, 0.5)}},
        {"text": {"vocab_size": 49500}},
        {"tokenizer": small_clip_bpe()},
        {"tokenizer": train_characters(CAPTIONS, CONTEXT)},
        {"tokenizer": train_bpe(CAPTIONS, 300, CONTEXT)},
    ],
)
@torch.no_grad()
def test_open_clip_reads_the_same_model(traits: dict[str, Any], tmp_path: Path):
    encoder = TorchEncoder(checkpoint(tmp_path / "model", **traits))
    out = export_weights(tmp_path / "model", tmp_path / "out", to="open_clip")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{out}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{out}")
    photos = photographs()
    images = unit(model.eval().encode_image(torch.stack([transform(photo) for photo in photos])))
    np.testing.assert_allclose(images, encoder.encode_images(photos), atol=1e-5)
    np.testing.assert_allclose(unit(model.encode_text(tokenize(CAPTIONS))), encoder.encode_texts(CAPTIONS), atol=1e-5)
    assert model.logit_scale.exp().item() == pytest.approx(encoder.about.logit_scale, abs=1e-5)
    assert (model.logit_bias is None) == ("logit_bias" not in traits)


@pytest.mark.parametrize(
    ("traits", "trait"),
    [
        ({"image": {"stem": "conv", "patch_bias": True}}, "a convolutional stem"),
        ({"image": {"pooling": "mean"}}, "mean pooling without a class token"),
        ({"image": {"patch_bias": True}}, "a bias in its patch embedding"),
        ({"image": {"activation": "quick_gelu"}}, "QuickGELU in one tower only"),
    ],
)
def test_what_open_clip_cannot_say_is_named(traits: dict[str, Any], trait: str, tmp_path: Path):
    checkpoint(tmp_path / "model", **traits)
    with pytest.raises(UsageError, match=rf"cannot be written for open_clip: it has .*{trait}.*\.$"):
        export_weights(tmp_path / "model", tmp_path / "out", to="open_clip")
