"""What is written for transformers and for open_clip is read by them, and by us, as the same model."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import tokenizers
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

from clip_core.data.clip_bpe import clip_tokenizer, find_clip_tokenizer
from clip_core.data.preprocess import preprocess
from clip_core.data.tokenizer import END, START, Tokenizer, train_bpe, train_characters
from clip_core.errors import ParityError, UsageError
from clip_core.inference.torch_encoder import TorchEncoder
from clip_core.model.checkpoint import load_model, save_checkpoint
from clip_core.model.clip import CLIP
from clip_core.model.published import read_published
from clip_core.network import ClipConfig, ImageTower, Preprocessing, TextTower
from export.formats import MARKER, export_weights, prove
from tests.models import images_of, make_run, python
from tests.published import hugging_face_model, open_clip_model, save_open_clip, shaken

CAPTIONS = ["a dog", "", "Two people, on a beach & a red kite!!", "it's 12 o'clock", "word " * 40]
CONTEXT, SIDE = 16, 32
IMAGE = {
    "image_size": SIDE, "patch_size": 16, "width": 32, "heads": 2, "layers": 2, "pooling": "class_token",
    "pre_norm": True, "patch_bias": False,
}  # fmt: skip
MEAN = {"pooling": "mean", "class_token": True}


@cache
def clip_bpe(fixed: bool = False, pad: str = "zero") -> Tokenizer:
    return find_clip_tokenizer(None, CONTEXT, pad=pad, fixed_length=fixed)


@cache
def small_clip_bpe() -> Tokenizer:
    """CLIP's kind of tokenizer with fewer merges, which open_clip does not carry."""
    said = json.loads(clip_bpe()._inner.to_str())["model"]
    merges = [tuple(pair) for pair in said["merges"][:50]]
    words = [*list(said["vocab"])[:512], *map("".join, merges), START, END]
    return clip_tokenizer({word: number for number, word in enumerate(words)}, merges, CONTEXT)


def ending_with_2() -> Tokenizer:
    """Characters with start and end numbered the other way round, as runs of earlier versions have them."""
    said = json.loads(train_characters(CAPTIONS, CONTEXT)._inner.to_str())
    words, specials = said["model"]["vocab"], said["post_processor"]["special_tokens"]
    words[START], words[END] = words[END], words[START]
    for word in (START, END):
        specials[word]["ids"] = [words[word]]
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(said)))


def checkpoint(
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    image: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
    logit_bias: bool = False,
) -> Path:
    """A checkpoint folder with every weight moved at random."""
    tokenizer = tokenizer or clip_bpe()
    said = {
        "vocab_size": tokenizer.vocab_size, "end_token": tokenizer.end_token, "context_length": CONTEXT,
        "width": 32, "heads": 2, "layers": 2,
    }  # fmt: skip
    config = ClipConfig(
        embed_dim=16,
        image=ImageTower(**(IMAGE | (image or {}))),
        text=TextTower(**(said | (text or {}))),
        preprocessing=Preprocessing(image_size=SIDE, **(preprocessing or {})),
        logit_bias=logit_bias,
    )
    model = shaken(CLIP(config))
    save_checkpoint(folder, model=model, tensors={}, state={}, step=3, epoch=1, scores={})
    tokenizer.save(folder / "tokenizer.json")
    return folder


def photographs(*, even: bool = False) -> list[Image.Image]:
    """Noise of several sizes; `even`: so that the same is cropped on both sides."""
    generator = np.random.default_rng(0)
    sizes = [(40, 32), (32, 32), (19, 57), (96, 64) if even else (90, 61)]
    noise = [generator.integers(0, 255, (height, width, 3), dtype=np.uint8) for width, height in sizes]
    return [Image.fromarray(pixels) for pixels in noise]


def unit(features: Any) -> np.ndarray:
    features = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(features, dim=-1).numpy()


# ---------------------------------------------------------------- transformers


@pytest.mark.parametrize(
    "traits",
    [
        {"image": {"activation": "quick_gelu"}, "text": {"activation": "quick_gelu"}},
        {"text": {"activation": "gelu_tanh", "norm_eps": 1e-6, "mlp_ratio": 3.0}},
        {"image": {"norm_eps": 1e-4, "mlp_ratio": 2.71, "patch_size": 8}, "preprocessing": {"mean": (0.5, 0.4, 0.3)}},
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
        ({"tokenizer": ending_with_2()}, "end token 2"),
        ({"preprocessing": {"resize_mode": "longest"}}, "resize mode longest"),
    ],
)
def test_what_transformers_cannot_say_is_named(traits: dict[str, Any], trait: str, tmp_path: Path):
    checkpoint(tmp_path / "model", **traits)
    with pytest.raises(UsageError, match=rf"cannot be written for transformers' CLIPModel: it has .*{trait}.*\.$"):
        export_weights(tmp_path / "model", tmp_path / "out", to="hf")
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


# ---------------------------------------------------------------- open_clip


@pytest.mark.parametrize(
    "traits",
    [
        {},
        {"image": {"activation": "quick_gelu"}, "text": {"activation": "quick_gelu"}},
        {"image": {"activation": "gelu_tanh", "norm_eps": 1e-4}, "text": {"mlp_ratio": 3.0}},
        {"image": MEAN},
        {"image": {**MEAN, "norm_after_pooling": False, "pre_norm": False, "mlp_ratio": 2.71}},
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


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_a_folder_of_transformers_comes_back_bit_for_bit(act: str, tmp_path: Path):
    reference = hugging_face_model(act=act)
    reference.save_pretrained(tmp_path / "theirs")
    out = export_weights(tmp_path / "theirs", tmp_path / "out", to="hf")
    same_tensors(load_file(out / "model.safetensors"), reference.state_dict())
    again = export_weights(out, tmp_path / "again", to="hf")
    for file in (path for path in out.iterdir() if path.name != MARKER):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"quick_gelu": True},
        {"vision": {"no_ln_pre": True, "pool_type": "avg"}, "text": {"no_causal_mask": True, "proj_bias": True,
         "pool_type": "last"}, "init_logit_bias": -10.0},
    ],
)  # fmt: skip
def test_a_folder_of_open_clip_comes_back_bit_for_bit(settings: dict[str, Any], tmp_path: Path):
    reference = open_clip_model(**settings)
    save_open_clip(tmp_path / "theirs", reference, **settings)
    out = export_weights(tmp_path / "theirs", tmp_path / "out", to="open_clip")
    same_tensors(load_file(out / "open_clip_model.safetensors"), reference.state_dict())
    again = export_weights(out, tmp_path / "again", to="open_clip")
    for file in (path for path in out.iterdir() if path.name != MARKER):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_weights_go_from_open_clip_to_transformers_and_back(tmp_path: Path):
    reference = open_clip_model(quick_gelu=True)
    save_open_clip(tmp_path / "theirs", reference, quick_gelu=True)
    there = export_weights(tmp_path / "theirs", tmp_path / "there", to="hf")
    back = export_weights(there, tmp_path / "back", to="open_clip")
    same_tensors(load_file(back / "open_clip_model.safetensors"), reference.state_dict())


def same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name


def test_what_reads_back_differently_is_no_export(tmp_path: Path):
    loaded = load_model(checkpoint(tmp_path / "model"))
    out = export_weights(tmp_path / "model", tmp_path / "out", to="open_clip")
    weights = load_file(out / "open_clip_model.safetensors")
    weights["ln_final.bias"][3] += 1e-7
    save_file(weights, out / "open_clip_model.safetensors")
    with pytest.raises(ParityError, match=r"differs from the model in text\.norm_final\.bias;"):
        prove(out, loaded.model, loaded.tokenizer)
    out = export_weights(tmp_path / "model", out, to="open_clip")
    config = json.loads((out / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (out / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ParityError, match=r"image\.activation, text\.activation"):
        prove(out, loaded.model, loaded.tokenizer)


# ---------------------------------------------------------------- places, and the command


def test_only_an_export_of_the_same_run_is_replaced(tmp_path: Path):
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    out = tmp_path / "out"
    export_weights(one, out, to="hf")
    export_weights(one, out, to="hf")
    with pytest.raises(UsageError, match=r"of the run 'one'; replace it with --force"):
        export_weights(two, out, to="hf")
    export_weights(two, out, to="hf", force=True)
    with pytest.raises(UsageError, match="something else than an export for open_clip"):
        export_weights(two, out, to="open_clip", force=True)
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="something else than an export for transformers"):
        export_weights(two, out, to="hf", force=True)
    assert (out / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out", "two"]


def test_a_run_is_written_below_itself_and_a_checkpoint_where_it_is_told(tmp_path: Path):
    run = make_run(tmp_path / "run", image={"pooling": "class_token", "patch_bias": False})
    out = export_weights(run, to="open_clip")
    assert out == run / "open_clip"
    assert json.loads((out / MARKER).read_text())["source"] == {
        "run": "run", "checkpoint": "step_0000007", "step": 7,
    }  # fmt: skip
    assert read_published(out).config.image.width == 32
    shutil.copytree(run / "checkpoints" / "step_0000007", tmp_path / "alone")
    shutil.copy(run / "tokenizer.json", tmp_path / "alone")
    with pytest.raises(UsageError, match="--out"):
        export_weights(tmp_path / "alone", to="open_clip")


def test_no_path_of_the_machine_is_in_any_file(tmp_path: Path):
    checkpoint(tmp_path / "model")
    for to in ("hf", "open_clip"):
        for file in export_weights(tmp_path / "model", tmp_path / to, to=to).iterdir():
            assert str(tmp_path).encode() not in file.read_bytes(), file


def test_the_command_writes_and_says_how_to_read(tmp_path: Path):
    checkpoint(tmp_path / "model")
    for to, call in (("hf", "CLIPModel.from_pretrained"), ("open_clip", "local-dir:")):
        done = python("-m", "export.cli", tmp_path / "model", "--format", to, "--out", tmp_path / to)
        assert done.returncode == 0, done.stderr
        assert call in done.stdout
        assert (tmp_path / to / MARKER).is_file()


def test_the_command_refuses_in_one_sentence(tmp_path: Path):
    run = make_run(tmp_path / "run")
    done = python("-m", "export.cli", run, "--format", "hf")
    assert done.returncode == 2
    assert done.stderr.startswith("clip-export: ")
    assert "mean pooling" in done.stderr
    assert done.stderr.count("\n") == 1
    done = python("-m", "export.cli", run, "--format", "hf", "--images", images_of(run)[0].parent)
    assert done.returncode == 2
    assert "--images" in done.stderr
    done = python("-m", "export.cli", run, "--format", "safetensors")
    assert done.returncode == 2
    assert "onnx" in done.stderr
