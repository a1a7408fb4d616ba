"""Frozen encoders of other libraries, aligned by trained heads: from the command to the bundle."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file

from clip_core.cli.train_command import run as train
from clip_core.inference.clip import CLIPInference
from clip_core.model.checkpoint import load_model
from clip_core.model.projection import ExternalEncoder
from clip_core.run.reader import RunReader
from export.bundle import export_bundle
from tests.encoders import PREPROCESSOR, image_folder, onnx_encoder, text_folder, timm_folder
from tests.running import latest, lines

COMMON = ["--device", "cpu", "--precision", "fp32", "--batch-size", "32", "--epochs", "3", "--log-every", "1"]
HEADS = ["--head-width", "16", "--embed-dim", "24", "--head-dropout", "0.1"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """image.onnx, dinov2/ and bert/ with random weights."""
    folder = tmp_path_factory.mktemp("encoders")
    onnx_encoder(folder / "onnx" / "image.onnx")
    (folder / "onnx" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    image_folder(folder / "dinov2", "dinov2")
    text_folder(folder / "bert", "bert", pooling="mean_tokens")
    return folder


def flags(encoders: Path, data: Path, run: Path, *more: str, image: str = "onnx/image.onnx") -> list[str]:
    return [
        "--data", str(data), "--run-dir", str(run), "--image-encoder", str(encoders / image),
        "--text-encoder", str(encoders / "bert"), *COMMON, *HEADS, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def aligned(encoders: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("aligned") / "run"
    assert train(flags(encoders, shapes, run, "--hard-negatives")) == 0
    return run


def weights(run: Path) -> dict[str, Any]:
    return dict(load_file(latest(run) / "model.safetensors"))


def test_heads_alone_are_trained_stored_and_described(aligned: Path) -> None:
    record = RunReader(aligned).record()
    assert [tower.encoder.source for tower in record.model.external] == ["onnx", "hugging_face"]
    assert all(name.startswith(("image.head.", "text.head.", "log_logit_scale")) for name in weights(aligned))
    log = (aligned / "train.log").read_text()
    assert "image encoder" in log
    assert "frozen, 6 features" in log
    assert "no licence named" in log
    assert "hard negatives for 100% of the captions, up to 4 each" in log
    losses = [line["loss"] for line in lines(aligned, "train")]
    assert losses[-1] < losses[0]


def test_the_embedding_of_an_image_is_that_of_its_cached_features(aligned: Path) -> None:
    """What validation measured on features is what inference computes from files."""
    clip = CLIPInference(latest(aligned), backend="torch")
    probe = RunReader(aligned).probe()
    assert probe is not None
    for image, expected in zip(probe.images, probe.similarity, strict=True):
        assert np.allclose(clip.image_text_similarity(Path(image), probe.captions), expected, atol=2e-5)


def test_the_bundle_is_the_model_and_needs_no_encoder(aligned: Path, tmp_path: Path) -> None:
    _, manifest = export_bundle(aligned, tmp_path / "bundle")
    assert manifest.parity is not None
    assert manifest.parity.max_abs_diff < 1e-5
    described = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert described["vision_config"]["encoder"]["source"] == "onnx"
    image = Path(RunReader(aligned).validation_pairs().pairs[0].image)
    answers = [
        CLIPInference(path, backend=backend).zero_shot_classification(image, ["a red circle", "a blue square"])
        for path, backend in ((tmp_path / "bundle", "onnx"), (aligned, "torch"))
    ]
    assert [name for name, _ in answers[0]] == [name for name, _ in answers[1]]
    assert [p for _, p in answers[0]] == pytest.approx([p for _, p in answers[1]], abs=1e-4)


def test_stopped_and_resumed_it_is_the_run_that_was_never_stopped(
    encoders: Path, shapes: Path, aligned: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(aligned, tmp_path / "run"))
    steps = sorted(path for path in (run / "checkpoints").iterdir())
    assert len(steps) > 1
    shutil.rmtree(steps[-1])  # as if it had been killed before its last checkpoint
    RunReader(run)
    assert train(["--resume", "--run-dir", str(run)]) == 0
    one, other = weights(aligned), weights(run)
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_an_encoder_that_changed_since_is_refused(
    encoders: Path, aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = Path(shutil.copytree(encoders, tmp_path / "encoders"))
    run = Path(shutil.copytree(aligned, tmp_path / "run"))
    record = json.loads((run / "config.json").read_text())
    moved = str(changed / "onnx" / "image.onnx")
    record["model"]["image"]["encoder"]["name"] = record["config"]["encoders"]["image_encoder"] = moved
    (run / "config.json").write_text(json.dumps(record))
    model = onnx.load(moved)
    weights = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(1.01 * weights, "weights"))
    onnx.save(model, moved)
    assert train(["--resume", "--run-dir", str(run)]) == 1
    assert "changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize("more", [
    ["--image-features", "patches"], ["--image-features", "mean", "--views", "3"],
    ["--structure", "1", "--cyclip", "0.25", "--head", "mlp", "--no-normalise-features"],
    ["--image-features", "class_token", "--head", "linear", "--loss", "sigmoid", "--hard-negatives",
     "--chunk-size", "5"],
])  # fmt: skip
def test_every_kind_of_features_and_head_trains(encoders: Path, shapes: Path, tmp_path: Path, more: list[str]) -> None:
    assert train(flags(encoders, shapes, tmp_path / "run", *more, image="dinov2")) == 0
    losses = [line["loss"] for line in lines(tmp_path / "run", "train")]
    assert losses[-1] < losses[0]
    loaded = load_model(tmp_path / "run")
    embeds = loaded.model.encode_image(torch.rand(2, 3, 32, 32))
    assert torch.allclose(embeds.norm(dim=1), torch.ones(2), atol=1e-5)


def test_one_side_may_be_trained_from_scratch(encoders: Path, shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    own = ["--model-size", "nano", "--layers", "1", "--width", "64"]
    assert train(
        ["--data", str(shapes), "--run-dir", str(run), "--image-encoder", str(encoders / "dinov2"), *own, *COMMON]
    ) == 0  # fmt: skip
    names = weights(run)
    assert "image.head.linear.weight" in names
    assert any(name.startswith("text.blocks.") for name in names)


def test_the_last_blocks_are_fine_tuned_from_the_aligned_run(encoders: Path, shapes: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(flags(encoders, shapes, first, image="dinov2")) == 0
    more = ["--unfreeze-last", "1", "--epochs", "1", "--batch-size", "32", "--device", "cpu", "--precision", "fp32"]
    assert train(["--data", str(shapes), "--init", str(first), "--run-dir", str(second), *more]) == 0
    before, after = load_model(first), load_model(latest(second))
    start, last = (line for line in lines(second, "eval"))
    assert start["mean_recall"] == pytest.approx(lines(first, "eval")[-1]["mean_recall"], abs=0.05)
    changed = set()
    for side in ("image", "text"):
        one, other = getattr(before.model, side), getattr(after.model, side)
        assert isinstance(one, ExternalEncoder)
        assert one.encoder is not None
        blocks = [[id(p) for p in block.parameters()] for block in one.encoder.blocks()]
        for (name, old), new in zip(one.encoder.named_parameters(), other.encoder.parameters(), strict=True):
            if not torch.equal(old, new):
                assert id(old) in blocks[-1], name
                changed.add(side)
    assert changed == {"image", "text"}
    assert last["step"] > 0


def test_an_encoder_with_batch_normalisation_is_fine_tuned_in_bf16(
    encoders: Path, shapes: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    timm_folder(tmp_path / "timm", "mobilenetv3_small_050")
    assert train(flags(encoders, shapes, first, image=str(tmp_path / "timm"))) == 0
    more = ["--unfreeze-last", "1", "--epochs", "1", "--batch-size", "64", "--device", "cpu", "--precision", "bf16"]
    assert train(["--data", str(shapes), "--init", str(first), "--run-dir", str(second), *more]) == 0
    stored = weights(second)
    assert all(np.isfinite(tensor).all() for tensor in stored.values())
    before = load_model(first).model.image
    assert isinstance(before, ExternalEncoder)
    assert before.encoder is not None
    weights_before = before.encoder.named_parameters()
    changed = [name for name, old in weights_before if (old.numpy() != stored[f"image.unfrozen.{name}"]).any()]
    assert any(name.endswith("bn1.weight") for name in changed)


@pytest.mark.parametrize(("more", "sentence"), [
    (["--patch-dropout", "0.5"], "--patch-dropout needs an image tower that is trained"),
    (["--vocab-size", "500"], "--vocab-size cannot be combined with --text-encoder"),
    (["--image-size", "64"], "use --encoder-image-size"),
    (["--init", "x"], "--init cannot be combined with --image-encoder"),
    (["--unfreeze-last", "2"], "train it first, then add --init RUN"),
    (["--layers", "2"], "both encoders are pretrained"),
])  # fmt: skip
def test_flags_that_do_not_fit_are_refused(
    encoders: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    assert train(flags(encoders, shapes, tmp_path / "run", *more)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_flags_of_encoders_need_one(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["--data", str(shapes), "--run-dir", str(tmp_path / "run"), "--head", "mlp"]) == 2
    assert "--head needs a pretrained encoder; add --image-encoder or --text-encoder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def sentences(shapes: Path) -> Path:
    """Few pairs whose captions are no classes: every one its own."""
    pairs = json.loads(shapes.read_text())[:60]
    path = shapes.parent / "sentences.json"
    path.write_text(json.dumps([pair | {"caption": f"{pair['caption']} number {n}"} for n, pair in enumerate(pairs)]))
    return path


@pytest.mark.parametrize(("side", "other"), [("image", "dinov2"), ("text", "bert")])
def test_of_few_pairs_a_side_from_scratch_has_its_dropout_and_features_have_none(
    encoders: Path, sentences: Path, tmp_path: Path, side: str, other: str
) -> None:
    run = tmp_path / "run"
    own = ["--model-size", "nano", "--layers", "1", "--width", "64"]
    assert train(["--data", str(sentences), "--run-dir", str(run), f"--{side}-encoder", str(encoders / other), *own,
                  *COMMON]) == 0  # fmt: skip
    recipe = RunReader(run).record().resolved
    assert (recipe.patch_dropout > 0, recipe.word_dropout > 0) == (side == "text", side == "image")
    augment = next(d.value for d in RunReader(run).record().decisions if d.setting == "augment")
    assert augment == ("captions" if side == "image" else "images")


def test_a_run_whose_encoder_was_moved_is_told_its_new_place_once(
    encoders: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(encoders, tmp_path / "here")
    run = tmp_path / "run"
    assert train(flags(tmp_path / "here", shapes, run)) == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert train(["--resume", "--run-dir", str(run)]) == 1
    assert "clip-train --resume --run-dir RUN --image-encoder PATH" in capsys.readouterr().err
    moved = ["--image-encoder", str(tmp_path / "there/onnx/image.onnx"), "--text-encoder", str(tmp_path / "there/bert")]
    assert train(["--resume", "--run-dir", str(run), *moved]) == 0
    assert train(["--resume", "--run-dir", str(run)]) == 0
    assert load_model(run).model.encode_image(torch.rand(1, 3, 32, 32)).shape == (1, 24)
    other = ["--image-encoder", str(tmp_path / "there/dinov2")]
    assert train(["--resume", "--run-dir", str(run), *other]) == 1
    assert "changed since the run began" in capsys.readouterr().err


def test_an_aligned_run_on_patches_is_trained_further_on_patches(encoders: Path, shapes: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(flags(encoders, shapes, first, "--image-features", "patches", image="dinov2")) == 0
    assert train(["--data", str(shapes), "--init", str(first), "--run-dir", str(second), *COMMON]) == 0
    assert lines(second, "eval")[0]["val_loss"] == pytest.approx(lines(first, "eval")[-1]["val_loss"], abs=1e-4)


def test_an_encoder_without_blocks_stays_frozen_and_the_other_is_fine_tuned(
    encoders: Path, shapes: Path, aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more = ["--unfreeze-last", "1", *COMMON]
    assert train(["--data", str(shapes), "--init", str(aligned), "--run-dir", str(run), *more]) == 0
    assert "stays frozen: it has no blocks to unfreeze" in capsys.readouterr().out
    assert [tower.unfrozen for tower in RunReader(run).record().model.external] == [0, 1]
    assert any(name.startswith("text.unfrozen.") for name in weights(run))


def test_flags_that_would_be_ignored_are_refused(
    shapes: Path, aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("--word-dropout", "--patch-dropout", "--bpe-dropout"):
        assert (
            train(["--data", str(shapes), "--init", str(aligned), "--run-dir", str(tmp_path / "x"), name, "0.5"]) == 2
        )
        assert f"{name} is not supported for external encoders" in capsys.readouterr().err


def test_features_that_are_not_finite_are_refused(
    encoders: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(encoders, tmp_path / "encoders"))
    path = broken / "onnx" / "image.onnx"
    model = onnx.load(path)
    values = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full_like(values, np.inf), "weights"))
    onnx.save(model, path)
    assert train(flags(broken, shapes, tmp_path / "run")) == 1
    assert "gives features that are not finite" in capsys.readouterr().err
