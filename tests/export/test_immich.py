"""A folder that immich reads, and what is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tokenizers

from clip_core.data.preprocess import preprocess
from clip_core.errors import ParityError
from clip_core.inference.bundle import read_manifest
from clip_core.inference.clip import CLIPInference
from clip_core.model.checkpoint import load_model
from export.cli import main
from export.formats import made_from
from export.immich import write_files
from export.immich_parity import TEXTUAL, VISUAL, immich_ids, immich_tokenizer, measure, sentence
from tests.export.checkpoints import checkpoint, photographs
from tests.export.kinds import every_bundle, photos_in
from tests.models import make_run

__all__ = ["every_bundle"]
TEXTS = ["a red dog", "Two people  on the\tbeach, and a kite!", "word " * 500]


@pytest.fixture
def folder(every_bundle: Path, tmp_path: Path) -> Path:
    """What is written for immich from the encoders of a bundle."""
    weights = every_bundle.parent / every_bundle.name.removesuffix("_bundle")
    loaded = load_model(weights)
    write_files(tmp_path, every_bundle, loaded.config, loaded.tokenizer)
    return tmp_path


def test_immich_finds_its_inputs_outputs_and_files(folder: Path, every_bundle: Path) -> None:
    manifest = read_manifest(every_bundle)
    side, context, width = manifest.preprocessing.image_size, manifest.context_length, manifest.embed_dim
    expected = {
        VISUAL: ("image", "tensor(float)", [1, 3, side, side]), TEXTUAL: ("text", "tensor(int32)", [1, context]),
    }  # fmt: skip
    for name, wanted in expected.items():
        onnx.checker.check_model(onnx.load(folder / name), full_check=True)
        session = onnxruntime.InferenceSession(folder / name)
        (given,), (got,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.type, given.shape) == wanted
        assert (got.name, got.shape) == ("embedding", [1, width])
    settings = json.loads((folder / "visual" / "preprocess_cfg.json").read_text())
    assert settings["size"] == [side, side]
    assert settings["resize_mode"] == manifest.preprocessing.resize_mode
    assert json.loads((folder / "config.json").read_text())["text_cfg"]["context_length"] == context
    words = json.loads((folder / "textual" / "tokenizer_config.json").read_text())
    inner = tokenizers.Tokenizer.from_file(str(folder / "textual" / "tokenizer.json"))
    assert inner.token_to_id(words["pad_token"]) is not None


def test_its_embeddings_are_those_of_the_bundle(folder: Path, every_bundle: Path) -> None:
    encoder = CLIPInference(every_bundle).encoder
    visual, textual = (onnxruntime.InferenceSession(folder / name) for name in (VISUAL, TEXTUAL))
    pixels = preprocess(photographs(), encoder.about.preprocessing)
    images = np.concatenate([visual.run(None, {"image": each[None]})[0] for each in pixels])
    np.testing.assert_allclose(images, encoder.encode_images(photographs()), atol=1e-5)
    inner = immich_tokenizer(folder)
    texts = np.concatenate([textual.run(None, {"text": immich_ids(inner, each)})[0] for each in TEXTS])
    np.testing.assert_allclose(texts, encoder.encode_texts(TEXTS), atol=1e-5)


def test_the_command_proves_it_and_replaces_its_own_folder_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    assert main([str(run), "--format", "immich"]) == 0
    assert "21 captions and the pixels of 36 images give embeddings at most" in capsys.readouterr().out
    out = run / "immich"
    assert made_from(out, "immich") == "run"
    assert {each.relative_to(out).as_posix() for each in out.rglob("*.json")} == {
        "clip_export.json", "config.json", "textual/special_tokens_map.json", "textual/tokenizer.json",
        "textual/tokenizer_config.json", "visual/preprocess_cfg.json",
    }  # fmt: skip
    assert "dimensions, choose that name" in (out / "README.md").read_text()
    (out / "visual" / "mine.txt").write_text("keep me")
    assert main([str(run), "--format", "immich", "--out", str(out)]) == 2
    assert "holds something else than an export for immich" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resize_mode": "longest"}, "which has no images that are padded to a square"),
        ({"resize_size": 40}, "which has no images that are resized to 40 pixels and cropped to 32"),
    ],
)
def test_what_immich_cannot_prepare_is_refused(
    settings: dict, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = checkpoint(tmp_path / "weights", preprocessing=settings)
    photos = str(photos_in(tmp_path / "photos"))
    assert main([str(weights), "--format", "immich", "--out", str(tmp_path / "out"), "--images", photos]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("every_bundle", ["clip"], indirect=True)
def test_captions_that_only_clip_tui_cleans_are_counted_not_refused(
    folder: Path, every_bundle: Path, tmp_path: Path
) -> None:
    loaded, images = load_model(every_bundle.parent / "clip"), sorted(photos_in(tmp_path / "photos").iterdir())
    texts = [*TEXTS, "Grüße, 漢字!", "it says <|endoftext|>", "fish &amp; chips"]
    parity = measure(folder, loaded.model, loaded.tokenizer, texts, images)
    assert parity.otherwise == ("fish &amp; chips",)
    assert parity.captions == len(TEXTS) + 2 + 3  # three of its own
    assert "; 1 caption of other letters or special tokens read otherwise" in sentence(parity)


@pytest.mark.parametrize("every_bundle", ["own"], indirect=True)
@pytest.mark.parametrize("spoilt", ["tokens", "weights", "resize"])
def test_a_folder_that_differs_is_refused(folder: Path, every_bundle: Path, spoilt: str, tmp_path: Path) -> None:
    loaded = load_model(every_bundle.parent / "own")
    images = sorted(photos_in(tmp_path / "photos").iterdir())
    measure(folder, loaded.model, loaded.tokenizer, TEXTS, images)
    if spoilt == "tokens":
        path = folder / "textual" / "tokenizer.json"
        words = json.loads(path.read_text())
        words["normalizer"] = None
        path.write_text(json.dumps(words))
        message = r"immich reads the caption .*as other tokens than the model was trained with"
    elif spoilt == "weights":
        spoil(folder / VISUAL)
        message = "what immich computes differs from the model"
    else:
        path = folder / "visual" / "preprocess_cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"resize_mode": "squash"}))
        message = "what immich computes differs from the model"
    with pytest.raises(ParityError, match=message):
        measure(folder, loaded.model, loaded.tokenizer, TEXTS, images)


def spoil(path: Path) -> None:
    """The largest weights, shuffled."""
    model = onnx.load(path)
    weights = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    values = onnx.numpy_helper.to_array(weights).copy()
    weights.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), weights.name))
    path.write_bytes(model.SerializeToString())
