"""What published weights say of themselves, what is refused and how, and where they can be used."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clip_core.cli import infer
from clip_core.errors import CheckpointError, ClipError, TokenizerError, UsageError
from clip_core.inference.clip import CLIPInference
from clip_core.model.checkpoint import load_model
from clip_core.model.open_clip_config import from_settings, named_settings
from clip_core.model.published import read_published
from clip_core.model.weight_maps import to_hugging_face, to_open_clip
from clip_core.network import Activation, ClipConfig, ImageTower, Pooling, TransformersTower
from export import cli as exporter
from tests.models import command, make_run, python
from tests.published import END, hugging_face_model, open_clip_model, save_open_clip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An open_clip hub folder."""
    return save_open_clip(tmp_path / "open_clip", open_clip_model())


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    folder = tmp_path / "hugging_face"
    hugging_face_model().save_pretrained(folder)
    return folder


def changed(path: Path, **values: Any) -> None:
    """Set values of a JSON file; a name with __ reaches into an object."""
    content = json.loads(path.read_text())
    for name, value in values.items():
        *inside, last = name.split("__")
        part = content
        for step in inside:
            part = part[step]
        part[last] = value
    path.write_text(json.dumps(content))


def reweighted(path: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace, add or leave out (None) tensors of a safetensors file."""
    weights = {name: value for name, value in (load_file(path) | change).items() if value is not None}
    save_file(weights, path)


def refused(path: Path | str, kind: type[ClipError] = CheckpointError, **options: Any) -> str:
    with pytest.raises(kind) as error:
        read_published(path, **options)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


# ---------------------------------------------------------------- identity


def test_what_open_clip_says_of_images_comes_along(tmp_path: Path) -> None:
    said = {
        "size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "interpolation": "bilinear",
        "resize_mode": "longest", "fill_color": 7, "mode": "RGB",
    }  # fmt: skip
    known = read_published(save_open_clip(tmp_path, open_clip_model(), said)).config.preprocessing
    assert (known.mean, known.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert (known.interpolation, known.resize_mode, known.fill, known.image_size) == ("bilinear", "longest", 7, 32)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_what_hugging_face_says_of_images_comes_along(hugging_face: Path, name: str) -> None:
    said = {
        "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "resample": 2, "do_center_crop": False,
        "size": {"height": 32, "width": 32},
    }  # fmt: skip
    content = {"image_processor": said} if name == "processor_config.json" else said
    (hugging_face / name).write_text(json.dumps(content))
    known = read_published(hugging_face).config.preprocessing
    assert (known.mean, known.interpolation, known.resize_mode) == ((0.5, 0.4, 0.3), "bilinear", "squash")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"size": {"shortest_edge": 48}, "crop_size": 32}, "makes images of 48"),
        ({"size": 48, "crop_size": {"height": 48, "width": 48}}, "makes images of 48"),
        ({"resample": 0}, "resample"),
        ({"do_normalize": False}, "do_normalize"),
        ({"do_center_crop": False, "size": {"shortest_edge": 32}}, "not square"),
        ({"size": []}, "makes images of []"),
    ],
)
def test_preprocessing_that_is_not_ours_is_refused(hugging_face: Path, said: dict[str, Any], reason: str) -> None:
    (hugging_face / "preprocessor_config.json").write_text(json.dumps(said))
    assert reason in refused(hugging_face)


def test_older_spellings_of_hugging_face_are_read(hugging_face: Path) -> None:
    config = hugging_face / "config.json"
    content = json.loads(config.read_text())
    content["text_config_dict"] = content["text_config"] | {"hidden_act": "gelu"}
    content["vision_config_dict"] = None
    config.write_text(json.dumps(content))
    known = read_published(hugging_face).config
    assert (known.text.activation, known.image.activation) == (Activation.GELU, Activation.QUICK_GELU)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-B-32-quickgelu", "ViT-L/14"])
def test_a_name_means_the_same_with_and_without_open_clip(tmp_path: Path, name: str) -> None:
    program = (
        "import sys; sys.modules['open_clip'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'open_clip' else find(name, package)\n"
        "from clip_core.model.open_clip_config import from_settings, named_settings\n"
        f"print(from_settings('x', named_settings({name!r}), {{}}).config.model_dump_json())"
    )
    without = python("-c", program)
    assert without.returncode == 0, without.stderr
    known = from_settings("x", named_settings(name), {}).config
    assert ClipConfig.model_validate_json(without.stdout) == known
    assert (known.image.activation is Activation.QUICK_GELU) == name.endswith("quickgelu")


def test_every_architecture_of_open_clip_is_understood_or_refused_by_name() -> None:
    understood, refusals = [], {}
    for name in open_clip.list_models():
        try:
            understood.append((name, from_settings(name, named_settings(name), {}).config))
        except CheckpointError as error:
            refusals[name] = str(error)
    assert len(understood) > 30
    assert {"ViT-B-32", "ViT-H-14", "ViT-bigG-14", "ViT-g-14", "ViT-L-14-336"} <= {name for name, _ in understood}
    for name, config in understood:
        settings = open_clip.get_model_config(name)
        assert isinstance(config.text, TransformersTower) is ("hf_model_name" in settings["text_cfg"])
        if "timm_model_name" not in settings["vision_cfg"]:
            assert isinstance(config.image, ImageTower)
            assert config.image.width // config.image.heads == settings["vision_cfg"].get("head_width", 64)
            assert (config.image.activation is Activation.QUICK_GELU) == settings.get("quick_gelu", False)
    libraries = ("ViTamin", "MobileCLIP", "EVA02", "convnext", "PE-Core", "roberta", "xlm-roberta", "mt5", "nllb")
    assert not [name for name in refusals if name.startswith(libraries)]
    siglip = {name: config for name, config in understood if "SigLIP" in name}
    unprojected = "ViT-SO400M-16-SigLIP-i18n-256"
    assert siglip.keys() == {name for name in open_clip.list_models() if "-SigLIP" in name} - {unprojected}
    assert "text projection 'none'" in refusals[unprojected]
    assert all(config.preprocessing.resize_mode == "squash" for config in siglip.values())
    so400m = siglip["ViT-SO400M-14-SigLIP-384"]
    assert (so400m.image.grid, so400m.image.mlp_width, so400m.text.mlp_width) == (27, 4304, 4304)
    assert so400m.image.width / so400m.image.heads == 72
    for name, part in (
        ("RN50", "a ResNet"), ("coca_ViT-B-32", "CoCa"), ("ViT-M-16-alt", "layer scale"),
        ("ViT-L-14-CLIPA", "strip_sep_token"),
    ):  # fmt: skip
        assert part in refusals[name]


def test_a_name_that_nobody_knows_is_said(folder: Path) -> None:
    weights = folder / "open_clip_model.safetensors"
    for name in ("ViT-B-31", "../../x", ""):
        assert "no model is called" in refused(weights, UsageError, model_name=name)


# ---------------------------------------------------------------- refused


def test_what_is_missing_or_left_over_is_named(folder: Path) -> None:
    path = folder / "open_clip_model.safetensors"
    reweighted(path, {"visual.ln_post.bias": None, "text_projection": None, "head.weight": torch.ones(2)})
    sentence = refused(folder)
    assert all(part in sentence for part in ("lacks text_projection, visual.ln_post.bias", "unexpected head.weight"))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_cfg__embed_dim": 48}, "text_projection has the shape [64, 32]"),
        ({"model_cfg__vision_cfg__layers": 3}, "visual.transformer.resblocks.2"),
        ({"model_cfg__vision_cfg__layers": 10**9}, "less than or equal to 1000"),
        ({"model_cfg__vision_cfg__image_size": 48}, "visual.positional_embedding"),
        ({"model_cfg__vision_cfg__patch_size": 7}, "visual.conv1.weight has the shape [64, 3, 8, 8]"),
        ({"model_cfg__text_cfg__mlp_ratio": "4"}, "mlp_ratio is '4'"),
        ({"model_cfg__vision_cfg__patch_size": "8"}, "whole number"),
        ({"model_cfg__text_cfg__context_length": 77}, "positional_embedding has the shape [16, 64]"),
        ({"model_cfg__text_cfg__mlp_ratio": 2.0}, "mlp"),
        ({"model_cfg__init_logit_bias": -10}, "lacks logit_bias"),
        ({"model_cfg__vision_cfg__no_ln_pre": True}, "unexpected visual.ln_pre.bias"),
        ({"model_cfg__vision_cfg__qk_norm": True}, "normalised queries"),
        ({"model_cfg__vision_cfg__attentional_pool": True}, "attentional pooling"),
        ({"model_cfg__vision_cfg__new_trait": 3}, "new_trait 3"),
        ({"model_cfg__vision_cfg__pool_type": []}, "configuration"),
        ({"model_cfg__vision_cfg": None}, "vision_cfg"),
        ({"model_cfg": None}, "configuration"),
        ({"preprocess_cfg": {"interpolation": "random"}}, "interpolation"),
        ({"preprocess_cfg": {"mean": "x"}}, "mean"),
    ],
)
def test_a_configuration_that_disagrees_or_cannot_be(folder: Path, values: dict[str, Any], reason: str) -> None:
    changed(folder / "open_clip_config.json", **values)
    sentence = refused(folder)
    assert reason in sentence
    assert str(folder) in sentence


def test_weights_of_another_architecture(tmp_path: Path, hugging_face: Path) -> None:
    foreign = {
        "positional_embedding_res": "LongCLIP", "visual.layer1.0.conv1.weight": "a ResNet",
        "visual.attn_pool.query": "attentional pooling",
        "text.transformer.embeddings.word": "text tower of a CLIP alone",
        "visual.transformer.resblocks.0.ls_1.gamma": "layer scale", "layer1.0.conv1.weight": "holds no CLIP",
    }  # fmt: skip
    for name, reason in foreign.items():
        path = tmp_path / "w.pt"
        torch.save({name: torch.ones(2), "fc.weight": torch.ones(2)}, path)
        assert reason in refused(path)
    changed(hugging_face / "config.json", model_type="align")
    assert "model_type 'align'" in refused(hugging_face)
    changed(hugging_face / "config.json", model_type="siglip2")
    assert "SigLIP2's NaFlex tower" in refused(hugging_face)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    bad = torch.ones(64)
    bad[17] = value
    reweighted(folder / "open_clip_model.safetensors", {"ln_final.weight": bad})
    assert "not finite in text.norm_final.weight" in refused(folder)


def test_heads_that_the_shapes_do_not_tell(tmp_path: Path) -> None:
    model = open_clip_model(vision={"width": 48, "head_width": 16})
    torch.save(model.state_dict(), tmp_path / "w.pt")
    assert "--init-model" in refused(tmp_path / "w.pt")


def test_sizes_that_cannot_be(folder: Path) -> None:
    assert "multiple" in refused(folder, UsageError, image_size=33)
    assert "16 tokens" in refused(folder, UsageError, context_length=17)


def test_a_tokenizer_that_does_not_fit(folder: Path, hugging_face: Path) -> None:
    changed(hugging_face / "config.json", text_config__eos_token_id=5)
    assert "ends captions with token 49407" in refused(hugging_face, TokenizerError)
    changed(folder / "open_clip_config.json", model_cfg__text_cfg__eos_id=2)
    assert "expects token 2 as their end" in refused(folder, TokenizerError)
    changed(folder / "open_clip_config.json", model_cfg__text_cfg__hf_tokenizer_name="org/name")
    assert "neither tokenizer.json nor spiece.model" in refused(folder, TokenizerError)


def test_what_is_not_there(tmp_path: Path, folder: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    assert "open_clip_model.safetensors" in refused(folder)
    (tmp_path / "empty").mkdir()
    assert "neither" in refused(tmp_path / "empty")
    assert "no weights at" in refused(tmp_path / "nothing")


# ---------------------------------------------------------------- in use


def test_both_ways_of_the_name_tables_are_bit_for_bit(folder: Path, hugging_face: Path) -> None:
    for place, file, written in (
        (folder, "open_clip_model.safetensors", to_open_clip), (hugging_face, "model.safetensors", to_hugging_face),
    ):  # fmt: skip
        theirs, known = load_file(place / file), read_published(place)
        ours = written(known.weights, known.config)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_published_weights_answer_as_open_clip_does_from_image_to_similarity(folder: Path, image: Path) -> None:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    texts = ["a dog", "two people", ""]
    with torch.no_grad():
        embeds = model.eval().encode_image(transform(Image.open(image))[None], normalize=True)
        theirs = (embeds @ model.encode_text(open_clip.tokenize(texts, 16), normalize=True).T)[0].numpy()
    ours = CLIPInference(folder).image_text_similarity(image, texts)
    assert np.abs(ours - theirs).max() < 1e-5


def test_the_identity_of_an_encoder_knows_what_the_weights_were_taken_for(tmp_path: Path) -> None:
    weights = open_clip_model().state_dict()
    torch.save(weights, tmp_path / "bare.pt")
    torch.save({"state_dict": weights}, tmp_path / "nested.pt")
    encoders = [CLIPInference(tmp_path / name).encoder.about.identity for name in ("bare.pt", "nested.pt", "bare.pt")]
    assert encoders[0] == encoders[2] != encoders[1]


def test_the_commands_take_published_weights(folder: Path, image: Path, tmp_path: Path) -> None:
    weights = folder / "open_clip_model.safetensors"
    asked = python("-m", "clip_core.cli.infer", "similarity", "--model", weights, "--image", image, "--texts", "a dog")
    assert asked.returncode == 0, asked.stderr
    unknown = command(
        infer.main, "similarity", "--model", weights, "--init-model", "x", "--image", image, "--texts", "a dog"
    )
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    lost = command(exporter.main, folder, "--images", image.parent)
    assert (lost.returncode, "--out" in lost.stderr) == (2, True)
    done = command(exporter.main, folder, "--images", image.parent, "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        CLIPInference(path).image_text_similarity(image, ["a dog", ""]) for path in (folder, tmp_path / "bundle")
    )
    assert np.abs(ours - theirs).max() < 1e-5


def test_a_run_still_loads(tmp_path: Path) -> None:
    loaded = load_model(make_run(tmp_path / "run"))
    assert loaded.step == 7
    assert loaded.config.image.pooling is Pooling.MEAN
    assert loaded.tokenizer.end_token == loaded.config.text.end_token != END
    assert not any(weight.is_meta for weight in loaded.model.state_dict().values())
    assert all(weight.requires_grad for weight in loaded.model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config__layer_norm_eps": -1e300}, r"image\.norm_eps is -1e\+300"),
        ({"text_config__num_hidden_layers": 10**9}, r"text\.layers is 1000000000"),
        ({"text_config__vocab_size": 10**12}, r"text\.vocab_size is"),
        ({"vision_config__hidden_size": 10**7}, r"image\.width is"),
        ({"projection_dim": 10**12}, "embed_dim is"),
    ],
)
def test_numbers_out_of_range_are_refused_before_memory_is_taken(
    hugging_face: Path, change: dict[str, Any], message: str
) -> None:
    changed(hugging_face / "config.json", **change)
    assert re.search(message, refused(hugging_face))
