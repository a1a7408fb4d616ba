"""What is written for transformers is the same model there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

from clip_core.data.preprocess import preprocess
from clip_core.data.tokenizer import train_bpe, train_characters
from clip_core.errors import UsageError
from clip_core.inference.torch_encoder import TorchEncoder
from export.formats import export_weights
from tests.export.checkpoints import (
    CAPTIONS,
    CONTEXT,
    MEAN,
    checkpoint,
    clip_bpe,
    photographs,
    small_clip_bpe,
    unit,
)


@pytest.mark.parametrize(
    "traits",
    [
        {"image": {"activation": "quick_gelu"}, "text": {"activation": "quick_gelu"}},
        {"text": {"activation": "gelu_tanh", "norm_eps": 1e-6, "mlp_width": 96}},
        {"image": {"norm_eps": 1e-4, "mlp_width": 86, "patch_size": 8}, "preprocessing": {"mean": (0.5, 0.4, 0.3)}},
        {"preprocessing": {"resize_mode": "squash", "interpolation": "bilinear"}},
        {"tokenizer": small_clip_bpe()},
        {"tokenizer": train_characters(CAPTIONS, CONTEXT)},
        {"tokenizer": train_bpe(CAPTIONS, 300, CONTEXT)},
        {"tokenizer": clip_bpe(pad="end"), "text": {"vocab_size": 49500}},
    ],
)
@torch.no_grad()
def test_transformers_reads_the_same_model(traits: dict[str, Any], tmp_path: Path):
    encoder = TorchEncoder(checkpoint(tmp_path / "model", **traits))
    out = export_weights(tmp_path / "model", tmp_path / "out", to="hf")
    model, info = CLIPModel.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    processor = CLIPProcessor.from_pretrained(out)
    assert len(AutoTokenizer.from_pretrained(out)) == encoder.tokenizer.vocab_size
    inputs = processor(text=CAPTIONS, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    texts = unit(model.eval().get_text_features(**inputs))
    np.testing.assert_allclose(texts, encoder.encode_texts(CAPTIONS), atol=1e-5)
    photos = photographs(even=True)  # an odd margin is halved down by transformers, to even by torchvision and us
    pixels = [processor.image_processor(photo, return_tensors="pt")["pixel_values"] for photo in photos]
    ours = torch.from_numpy(preprocess(photos, encoder.about.preprocessing))
    assert (torch.cat(pixels) - ours).abs().mean() < 0.02  # its own resizing may round another way
    np.testing.assert_allclose(
        unit(model.get_image_features(pixel_values=ours)), encoder.encode_images(photos), atol=1e-5
    )
    assert model.logit_scale.exp().item() == pytest.approx(encoder.about.logit_scale, abs=1e-5)


@pytest.mark.parametrize(
    ("traits", "trait"),
    [
        ({"image": {"stem": "conv", "patch_bias": True}}, "a convolutional stem and a bias in its patch embedding"),
        ({"image": MEAN}, "mean pooling"),
        ({"image": {"pre_norm": False}}, "no LayerNorm before"),
        ({"image": {"patch_bias": True}}, "a bias in its patch embedding"),
        ({"text": {"causal": False}, "tokenizer": clip_bpe(True)}, "not causal"),
        ({"text": {"pooling": "last"}, "tokenizer": clip_bpe(True)}, "pooling at the last token"),
        ({"text": {"projection_bias": True}}, "a bias in its text projection"),
        ({"logit_bias": True}, "a bias of the logits"),
        ({"preprocessing": {"resize_mode": "longest"}}, "resize mode longest"),
    ],
)
def test_what_transformers_cannot_say_is_named(traits: dict[str, Any], trait: str, tmp_path: Path):
    checkpoint(tmp_path / "model", **traits)
    with pytest.raises(UsageError, match=rf"cannot be written for transformers: it has .*{trait}.*\.$"):
        export_weights(tmp_path / "model", tmp_path / "out", to="hf")
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
