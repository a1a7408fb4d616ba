"""What is no encoder, or a damaged one, is refused in one sentence, and nothing of it is run."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from clip_core.errors import CheckpointError, ClipError, TokenizerError
from clip_core.model.encoders.describe import describe_encoders
from clip_core.model.encoders.resolve import load_image_encoder, load_text_encoder, resolve_encoder
from tests.encoders import image_folder, onnx_encoder, text_folder, timm_folder
from tests.models import ROOT


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("text") / "bert")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("image") / "dinov2")


@pytest.fixture
def own(bert: Path, dinov2: Path, tmp_path: Path) -> dict[str, Path]:
    """Copies that a test may spoil."""
    return {place.name: Path(shutil.copytree(place, tmp_path / place.name)) for place in (bert, dinov2)}


def sentence(load: Callable[[], Any]) -> str:
    with pytest.raises(ClipError) as refused:
        load()
    said = str(refused.value)
    assert "\n" not in said
    assert said.endswith((".", "'clip-tui[encoders]'"))
    return said


def test_a_text_encoder_without_tokenizer(own: dict[str, Path]) -> None:
    (own["bert"] / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"has no tokenizer.json; make one with transformers"):
        load_text_encoder(str(own["bert"]))


def test_a_tokenizer_of_another_encoder(own: dict[str, Path]) -> None:
    config = own["bert"] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 5}))
    assert "put the tokenizer.json that belongs to it there" in sentence(lambda: load_text_encoder(str(own["bert"])))


def test_an_image_encoder_without_preprocessing(own: dict[str, Path]) -> None:
    (own["dinov2"] / "preprocessor_config.json").unlink()
    assert "does not say how images are prepared" in sentence(lambda: load_image_encoder(str(own["dinov2"])))
    assert load_image_encoder(str(own["dinov2"]), preprocessing="imagenet").info.feature_size == 16


@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code"])
@pytest.mark.parametrize("side", ["image", "text"])
def test_a_configuration_that_asks_for_code_is_refused_before_anything_is_imported(
    key: str, side: Any, own: dict[str, Path]
) -> None:
    folder = own["dinov2" if side == "image" else "bert"]
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {key: {"AutoModel": "evil.Model"}}))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    for call in (resolve_encoder, lambda *a: (load_image_encoder if side == "image" else load_text_encoder)(a[0])):
        assert f"asks for code of its own ({key}), which is never run" in sentence(lambda: call(str(folder), side))  # noqa: B023
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_truncated_weight_file(side: Any, own: dict[str, Path]) -> None:
    folder = own["dinov2" if side == "image" else "bert"]
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    load = load_image_encoder if side == "image" else load_text_encoder
    said = sentence(lambda: load(str(folder)))
    assert "model.safetensors is cut short" in said


def test_weights_of_another_network(own: dict[str, Path]) -> None:
    config = own["bert"] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
    assert "tensors are missing" in sentence(lambda: load_text_encoder(str(own["bert"])))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 2, "intermediate_size": 28}))
    sentence(lambda: load_text_encoder(str(own["bert"])))


def test_weights_of_another_architecture_of_timm(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "timm")
    said = sentence(lambda: load_image_encoder(f"timm:resnet10t@{folder / 'model.safetensors'}"))
    assert "are not the weights of timm's resnet10t: missing" in said
    assert "has no architecture 'resnet9000'" in sentence(
        lambda: load_image_encoder(f"timm:resnet9000@{folder / 'model.safetensors'}")
    )
    assert "no weights at" in sentence(lambda: load_image_encoder("timm:resnet10t@nothing.safetensors"))


def test_an_onnx_file_with_other_inputs_or_outputs(tmp_path: Path) -> None:
    two = onnx_encoder(tmp_path / "two.onnx", inputs=2)
    assert "has 2 inputs (pixels, other0); an image encoder has one" in sentence(
        lambda: load_image_encoder(str(two), preprocessing="clip")
    )
    last = onnx_encoder(tmp_path / "last.onnx", square=False)
    assert "takes float pixels of shape (batch, 3, S, S)" in sentence(
        lambda: load_image_encoder(str(last), preprocessing="clip")
    )
    maps = onnx.load(onnx_encoder(tmp_path / "maps.onnx"))
    maps.graph.output[0].CopyFrom(helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", 6, 8, 8]))
    onnx.save(maps, tmp_path / "maps.onnx")
    assert "gives an output of shape (1, 6, 8, 8)" in sentence(
        lambda: load_image_encoder(str(tmp_path / "maps.onnx"), preprocessing="clip")
    )


def test_an_onnx_file_that_is_damaged_or_reaches_outside_its_folder(tmp_path: Path) -> None:
    path = onnx_encoder(tmp_path / "inside" / "encoder.onnx", external=True)
    assert "does not say how images are prepared" in sentence(lambda: load_image_encoder(str(path)))
    data = path.with_name(f"{path.name}.data")
    data.rename(tmp_path / "elsewhere")
    assert "which is not beside it" in sentence(lambda: load_image_encoder(str(path), preprocessing="clip"))
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../elsewhere"
    path.write_bytes(model.SerializeToString())
    assert "which is outside its folder" in sentence(lambda: load_image_encoder(str(path), preprocessing="clip"))
    path.write_bytes(model.SerializeToString()[:-20])
    assert "is cut short or no ONNX file" in sentence(lambda: load_image_encoder(str(path), preprocessing="clip"))


@pytest.mark.fault("hostile ONNX encoder")
def test_an_onnx_file_that_asks_for_all_memory_does_so_in_a_child(tmp_path: Path) -> None:
    model = onnx.load(onnx_encoder(tmp_path / "large.onnx"))
    size = helper.make_tensor("size", TensorProto.INT64, [1], [2**31])
    model.graph.node[-1].output[0] = "small"
    model.graph.node.extend([
        helper.make_node("Constant", [], ["size"], value=size),
        helper.make_node("Constant", [], ["none"], value=helper.make_tensor("none", TensorProto.FLOAT, [1], [0])),
        helper.make_node("Expand", ["none", "size"], ["8 GB"]),
        helper.make_node("ReduceMax", ["8 GB"], ["most"], keepdims=0),
        helper.make_node("Add", ["small", "most"], ["features"]),
    ])  # fmt: skip
    onnx.save(model, tmp_path / "large.onnx")
    said = sentence(lambda: load_image_encoder(str(tmp_path / "large.onnx"), preprocessing="clip"))
    assert "large.onnx cannot be used: " in said
    assert "could not compute features" in said or "of memory" in said


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_name_that_is_neither_a_folder_nor_on_the_hub(side: Any) -> None:
    said = sentence(lambda: resolve_encoder("no such encoder", side))
    assert "it is neither a folder or file here, nor" in said
    assert "clip-train --list-encoders" in said


def test_an_encoder_of_the_other_side_and_one_that_is_not_supported(own: dict[str, Path], tmp_path: Path) -> None:
    assert "is a text encoder (bert); give it as --text-encoder" in sentence(
        lambda: load_image_encoder(str(own["bert"]))
    )
    (own["bert"] / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert '"gpt2", which is not supported as a text encoder' in sentence(lambda: load_text_encoder(str(own["bert"])))
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        load_image_encoder(str(tmp_path))


def test_a_module_of_sentence_transformers_that_is_not_supported(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "st", pooling="mean_tokens")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "has a module 'Dense', which is not supported" in sentence(lambda: load_text_encoder(str(folder)))
    modules[-1] |= {"path": "../elsewhere"}
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "a place outside its folder" in sentence(lambda: load_text_encoder(str(folder)))


def test_a_missing_package_is_named_and_nothing_optional_is_imported_before(bert: Path) -> None:
    program = (
        "import sys\n"
        "import clip_core.model.encoders.resolve as encoders\n"
        "assert not {'timm', 'transformers'} & set(sys.modules)\n"
        "sys.modules['transformers'] = None\n"
        "from clip_core.errors import MissingExtraError\n"
        "try:\n"
        f"    encoders.load_text_encoder({str(bert)!r})\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert "needs transformers, which is not installed: pip install 'clip-tui[encoders]'" in done.stdout, done.stderr


def test_the_list_of_encoders_names_kinds_and_what_a_name_resolves_to(bert: Path, tmp_path: Path) -> None:
    kinds = describe_encoders()
    for word in ("--image-encoder takes", "--text-encoder takes", "timm:", "dinov2", "xlm-roberta", "timm installed"):
        assert word in kinds
    (bert / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    said = describe_encoders(str(bert))
    for word in ("bert (BertModel), mean pooling", "features        16", "cc-by-nc-4.0", "at most 20 tokens"):
        assert word in said
    with pytest.raises(ClipError, match="no image encoder"):
        describe_encoders("no such encoder")
