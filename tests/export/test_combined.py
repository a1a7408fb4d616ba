"""onnx/model.onnx: what transformers' CLIPModel and SiglipModel compute, and the two encoders of its bundle."""

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from clip_core.data.preprocess import preprocess
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import BundleError
from clip_core.inference.bundle import open_bundle, read_manifest
from clip_core.inference.clip import CLIPInference
from clip_core.inference.manifest import COMBINED, TEXT, VISION
from export.cli import main
from export.combined import up_to_end
from tests.export.checkpoints import photographs
from tests.export.kinds import every_bundle
from tests.models import make_run

__all__ = ["every_bundle"]
TEXTS = ["a red dog", "the", "two people on a beach " * 30]


def shapes(values: list[onnxruntime.NodeArg]) -> dict[str, list[int | str]]:
    return {value.name: value.shape for value in values}


def test_it_computes_embeddings_and_logits_of_any_two_batches(every_bundle: Path) -> None:
    manifest, clip = read_manifest(every_bundle), CLIPInference(every_bundle)
    session = onnxruntime.InferenceSession(every_bundle / COMBINED)
    padded = every_bundle.name == "siglip_bundle"
    size, tokens = manifest.preprocessing.image_size, 64 if padded else "tokens"
    masked = {} if padded else {"attention_mask": ["text_batch", tokens]}
    pixels = {"pixel_values": ["image_batch", 3, size, size]}
    assert shapes(session.get_inputs()) == {"input_ids": ["text_batch", tokens]} | masked | pixels
    assert list(shapes(session.get_outputs())) == ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
    photos, encoder = photographs(), clip.encoder
    images, texts = encoder.encode_images(photos), encoder.encode_texts(TEXTS)
    ids = Tokenizer.load(every_bundle / "tokenizer.json").encode(TEXTS)
    inputs = {"input_ids": ids, "pixel_values": preprocess(photos, encoder.about.preprocessing)}
    if masked:
        inputs["attention_mask"] = up_to_end(ids, manifest.end_token)
    found = dict(zip(shapes(session.get_outputs()), session.run(None, inputs), strict=True))
    np.testing.assert_allclose(found["image_embeds"], images, atol=1e-5)
    np.testing.assert_allclose(found["text_embeds"], texts, atol=1e-5)
    logits = manifest.logit_scale * images @ texts.T + (manifest.logit_bias or 0)
    np.testing.assert_allclose(found["logits_per_image"], logits, atol=1e-4 * manifest.logit_scale)
    np.testing.assert_allclose(found["logits_per_text"], found["logits_per_image"].T)


@pytest.mark.parametrize("every_bundle", ["own", "aligned"], indirect=True)
def test_masked_tokens_are_padding_whatever_they_are(every_bundle: Path) -> None:
    """Each library pads with another token."""
    session = onnxruntime.InferenceSession(every_bundle / COMBINED)
    side = read_manifest(every_bundle).preprocessing.image_size
    ids = Tokenizer.load(every_bundle / "tokenizer.json").encode(TEXTS)
    mask = up_to_end(ids, read_manifest(every_bundle).end_token)
    assert 0 < mask.sum() < mask.size
    inputs = {"attention_mask": mask, "pixel_values": np.zeros((1, 3, side, side), np.float32)}
    one, other = (
        session.run(["text_embeds"], inputs | {"input_ids": np.where(mask == 1, ids, padding)})[0] for padding in (3, 5)
    )
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - CLIPInference(every_bundle).encoder.encode_texts(TEXTS)).max() < 1e-5


def test_every_file_is_a_valid_onnx_file_and_holds_its_weights_once(every_bundle: Path) -> None:
    sizes = {}
    for path in sorted((every_bundle / "onnx").iterdir()):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert {each.domain for each in model.opset_import} == {""}
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
        sizes[path.name] = path.stat().st_size
    towers = sizes["vision_model.onnx"] + sizes["text_model.onnx"]
    assert sizes["model.onnx"] < 1.03 * towers + 20_000
    assert sizes["vision_model_with_preprocessing.onnx"] < 1.03 * sizes["vision_model.onnx"] + 20_000


def test_the_command_writes_both_files_lists_them_and_checks_them_on_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    assert main([str(run), "--combined", "--with-preprocessing"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^onnx/model\.onnx +8 ", printed, re.MULTILINE)
    assert "preprocessing in ONNX: 36 images, at most 0 of 255 levels apart from Pillow" in printed
    bundle = run / "bundle"
    manifest = read_manifest(bundle)
    assert {row.file for row in manifest.parity.rows} == {VISION, TEXT, COMBINED}
    assert manifest.preprocessing_parity is not None
    assert manifest.preprocessing_parity.least_cosine > 0.9999
    first = (bundle / COMBINED).read_bytes()
    open_bundle(bundle)
    for name in (COMBINED, manifest.preprocessing_parity.file):
        spoilt = Path(shutil.copytree(bundle, tmp_path / "spoilt", dirs_exist_ok=True))
        (spoilt / name).write_bytes((bundle / name).read_bytes()[:-1] + b"\0")
        with pytest.raises(BundleError, match="is not the file that its manifest describes"):
            open_bundle(spoilt)
    assert main([str(run), "--combined"]) == 0
    assert (bundle / COMBINED).read_bytes() == first
    assert read_manifest(bundle).preprocessing_parity is None


def test_other_formats_have_no_such_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--format", "hf", "--combined"]) == 2
    assert "--combined is for an ONNX bundle; leave it out with --format hf." in capsys.readouterr().err
