"""Files and folders that stand where weights should be: found inside, or named in one sentence with the way out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clip_core.errors import CheckpointError
from clip_core.model.checkpoint import load_model
from clip_core.model.hub import hub_name, local_source
from clip_core.model.published import read_published
from tests.published import hugging_face_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d" * 32 + "\nsize 605157884\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hugging_face")
    hugging_face_model().save_pretrained(folder)
    return folder


def model_in(made: Path, folder: Path) -> Path:
    shutil.copytree(made, folder)
    return folder


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


FILES: dict[str, tuple[bytes, str]] = {
    "pointer.safetensors": (POINTER.encode(), "is a Git LFS pointer to a file of 605,157,884 bytes"),
    "pointer.bin": (POINTER.encode(), "git lfs pull"),
    "page.pt": (b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>", "is a web page (titled '404')"),
    "page.safetensors": (b"\xef\xbb\xbf<HTML><body>Sign in</body></HTML>", "is a web page"),
    "reply.bin": (b'{"error": "Repository not found"}', "is text"),
    "reply.pt": (b"Entry not found", "is text (it begins 'Entry not found')"),
    "empty.safetensors": (b"", "is empty"),
    "zeros.bin": (bytes(5000), "full of zeros"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "model.gguf": (b"GGUF\x03\0\0\0" + bytes(64), "GGUF"),
    "model.onnx": (b"\x08\x08\x12\x07pytorch" + bytes(range(200, 250)), "is an ONNX graph"),
    "w.pt.gz": (b"\x1f\x8b\x08" + bytes(range(64)), "is a gzip archive"),
    "w.tar": (b"w.pt".ljust(257, b"\0") + b"ustar\x0000" + bytes(512), "is a tar archive"),
    "cat.JPG": (b"\xff\xd8\xff\xe0" + bytes(64), "is a JPEG image"),
    "noise.pt": (bytes(range(200, 256)), "neither a PyTorch nor a safetensors file"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_weights_is_named(tmp_path: Path, name: str) -> None:
    content, said = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert said in refused(tmp_path / name)


def test_a_pointer_in_place_of_a_shard_or_of_a_configuration_is_named(made: Path, tmp_path: Path) -> None:
    folder = model_in(made, tmp_path / "model")
    (folder / "config.json").write_text(POINTER)
    assert "config.json is a Git LFS pointer" in refused(folder)
    shutil.copy(made / "config.json", folder)
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "one.safetensors").write_text(POINTER)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"logit_scale": "one.safetensors"}}))
    assert "one.safetensors is a Git LFS pointer" in refused(folder)
    index.write_text("<html>")
    assert "index.json is a web page" in refused(folder)


def test_a_configuration_with_a_byte_order_mark_is_read_and_a_trailing_comma_is_named(
    made: Path, tmp_path: Path
) -> None:
    folder = model_in(made, tmp_path / "model")
    config = folder / "config.json"
    plain = config.read_text()
    config.write_text("\ufeff" + plain, encoding="utf-8")
    assert read_published(folder).config.embed_dim > 0
    config.write_text(plain.rstrip().removesuffix("}") + ",}")
    lines = len(config.read_text().splitlines())
    assert f"a comma before the closing bracket in line {lines}; remove the comma" in refused(folder)
    config.write_text(plain.replace(":", "=", 1))
    assert "is not valid JSON (line 2" in refused(folder)


def test_a_model_inside_a_hub_cache_or_sentence_transformers_is_read(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache" / "models--org--clip"
    revision = model_in(made, place / "snapshots" / ("ab" * 20))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("ab" * 20)
    assert "revision abababababab" in load_model(place).notes[0]
    assert "models--org--clip" in refused(tmp_path / "cache")
    shutil.copytree(revision, place / "snapshots" / ("cd" * 20))
    assert load_model(place).folder == place
    (place / "refs" / "main").unlink()
    assert "2 revisions" in refused(place)
    sentences = tmp_path / "sentences"
    model_in(made, sentences / "0_CLIPModel")
    modules = [{"idx": 0, "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (sentences / "modules.json").write_text(json.dumps(modules))
    assert "0_CLIPModel of sentence-transformers" in load_model(sentences).notes[0]
    for elsewhere in ("../cache", "/etc", ".."):
        modules[0]["path"] = elsewhere
        (sentences / "modules.json").write_text(json.dumps(modules))
        assert "without a CLIPModel" in refused(sentences)


FOLDERS: dict[str, tuple[dict[str, Any], str]] = {
    "an adapter": (
        {"adapter_config.json": {"base_model_name_or_path": "openai/x"}, "adapter_model.safetensors": {}},
        "is a PEFT adapter (for openai/x)",
    ),
    "sentences alone": (
        {"modules.json": [{"path": "", "type": "sentence_transformers.models.Transformer"}]}, "a text encoder",
    ),
    "a pipeline": ({"model_index.json": {}, "text_encoder/config.json": {}}, "is a pipeline of diffusers"),
    "a Trainer's output": ({"checkpoint-500/config.json": {}, "checkpoint-90/config.json": {}}, "checkpoint-500."),
    "a bundle": ({"manifest.json": {}}, "is an ONNX bundle"),
    "a written bundle": ({"manifest.json": {}, "config.json": {"model_type": "clip"}}, "is an ONNX bundle already"),
    "one file": ({"epoch_1.pt": {}}, "give the weight file itself: epoch_1.pt"),
    "images": ({"a.JPG": {}, "b.png": {}}, "it has 2 images: give a model"),
    "a folder of models": ({"clip/config.json": {"model_type": "clip"}}, "give the folder of a model inside it: clip"),
    "an image tower": ({"config.json": {"model_type": "clip_vision_model"}}, "is the image tower of a CLIP alone"),
    "a text tower": (
        {"config.json": {"model_type": "clip_text_model_with_projection"}}, "is the text tower of a CLIP alone",
    ),
    "a distributed run": (
        {"config.json": {"model_type": "clip"}, "pytorch_model_fsdp_0/x": {}}, "accelerate merge-weights",
    ),
    "Flax": ({"config.json": {"model_type": "clip"}, "flax_model.msgpack": {}}, "it has flax_model.msgpack"),
    "nothing": ({}, "neither a run directory nor a checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_no_model_is_named(tmp_path: Path, name: str) -> None:
    files, said = FOLDERS[name]
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps(content))
    assert said in refused(tmp_path)


def test_what_is_not_beside_the_weights_is_assumed_and_said(made: Path) -> None:
    assert load_model(made).notes == (
        "no tokenizer.json and no preprocessor_config.json beside it: CLIP's own are assumed",
    )


def test_the_tensors_of_one_tower_are_named(tmp_path: Path) -> None:
    save_file({"text_model.embeddings.token_embedding.weight": torch.ones(2, 2)}, tmp_path / "text.safetensors")
    assert "is the text tower of a CLIP alone" in refused(tmp_path / "text.safetensors")


def test_the_weights_of_a_checkpoint_lead_to_its_folder(tmp_path: Path) -> None:
    save_file({"image.positions": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "meta.json").write_text("{}")
    assert f"is a part of the checkpoint {tmp_path.name}" in refused(tmp_path / "model.safetensors")


def test_a_model_as_other_programs_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_source("local-dir:some/folder") == Path("some/folder")
    for address in ("https://huggingface.co/org/name", "https://hf.co/org/name/tree/main", "hf://org/name"):
        assert hub_name(str(local_source(Path(address)))) == "org/name"
    for plain in ("org/name", "hf-hub:org/name", "w/ViT-B-32.pt", "vit-team/model", "convnext/x", "ViT-B-32.pt"):
        assert local_source(plain) == Path(plain)
    (tmp_path / "RN50").mkdir()
    assert local_source("RN50") == Path("RN50")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("ViT-B/32", "OpenAI's weights are openai/clip-vit-base-patch32"),
        ("ViT-L-14", "OpenAI's weights are openai/clip-vit-large-patch14"),
        ("ViT-L/14@336px", "openai/clip-vit-large-patch14-336"),
        ("ViT-H-14", "names an architecture"),
        ("RN50", "names an architecture"),
        ("convnext_base_w", "names an architecture"),
        ("ViT-B-32/laion2b_s34b_b79k", "names an architecture"),
        ("https://huggingface.co/org/name/resolve/main/w.safetensors", "hf download org/name w.safetensors"),
        ("https://example.org/ViT-B-32.pt", "nothing is downloaded from there"),
        ("s3://bucket/w.pt", "is an address"),
    ],
)  # fmt: skip
def test_a_model_that_is_no_path_is_named_for_what_it_is(typed: str, said: str) -> None:
    with pytest.raises(CheckpointError) as error:
        local_source(Path(typed))
    assert said in str(error.value)
