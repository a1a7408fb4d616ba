"""Fine-tuning towers of timm and transformers with the command, and what cannot be asked of them."""

import shutil
from pathlib import Path

import pytest
import torch

from clip_core.cli.train import main
from clip_core.model.checkpoint import load_model, load_tensors
from clip_core.model.library_tower import LibraryTower
from clip_core.model.published import read_published
from export.formats import export_weights
from tests.published_towers import write_model
from tests.running import assert_same_run, latest

SHORT = ["--epochs", "1", "--batch-size", "32", "--log-every", "1", "--device", "cpu", "--eval-every", "2",
         "--checkpoint-every", "2", "--keep-checkpoints", "100"]  # fmt: skip
WAYS = {
    "ema": ["--ema", "0.9", "--precision", "fp32"],
    "locked": ["--lock", "image", "--unlock-last", "1", "--ema", "0", "--precision", "fp32"],
    "text in bf16": ["--lock", "text", "--precision", "bf16"],
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Batch statistics on one side, dropout and a configuration elsewhere on the other."""
    folder = tmp_path_factory.mktemp("weights") / "m"
    write_model(folder, "MobileCLIP (FastViT)", "XLM-R, mean, MLP")
    return folder


@pytest.fixture(scope="module", params=WAYS)
def tuned(
    request: pytest.FixtureRequest, weights: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    run = tmp_path_factory.mktemp("tuned") / "run"
    given = ["--data-file", str(shapes), "--run-dir", str(run), "--init", str(weights)]
    assert main([*given, *SHORT, *WAYS[request.param]]) == 0
    return request.param, run


def test_what_should_learn_does_and_the_rest_stays(tuned: tuple[str, Path], weights: Path) -> None:
    way, run = tuned
    before, after = read_published(weights).weights, load_tensors(latest(run) / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if "running_" in name or "num_batches" in name]
    assert ("image.trunk.stem.0.conv_kxk.0.conv.weight" in moved) is (way != "locked")
    assert "image.trunk.head.fc.weight" in moved
    assert ("text.proj.2.weight" in moved) is (way != "text in bf16")
    log = (run / "train.log").read_text()
    assert "train without dropout and with the batch statistics of their pretraining" in log


def test_a_resumed_run_needs_neither_the_checkpoint_nor_what_it_names(
    tuned: tuple[str, Path], weights: Path, tmp_path: Path
) -> None:
    whole, parts = tuned[1], tmp_path / "run"
    shutil.copytree(whole, parts)
    for folder in (parts / "checkpoints").iterdir():
        if folder.name > "step_0000002":
            shutil.rmtree(folder)
    away = [(place, place.with_name(f"{place.name}-away")) for place in (weights, weights.with_name("m-encoder"))]
    for place, there in away:
        place.rename(there)
    try:
        assert main(["--resume", "--run-dir", str(parts)]) == 0
    finally:
        for place, there in away:
            there.rename(place)
    assert_same_run(whole, parts)


def test_a_tuned_run_goes_back_to_open_clip(tuned: tuple[str, Path], tmp_path: Path) -> None:
    out = export_weights(tuned[1], tmp_path / "out", to="open_clip")
    found, run = read_published(out), load_model(tuned[1])
    assert found.config.text == run.config.text
    assert all(torch.equal(found.weights[name], value) for name, value in run.model.state_dict().items())


def test_layers_are_counted_from_the_end(weights: Path) -> None:
    model = read_published(weights).build()
    assert isinstance(model.image, LibraryTower)
    assert isinstance(model.text, LibraryTower)
    image, text = model.image.layers_above(), model.text.layers_above()
    assert (len(model.image.blocks), len(model.text.blocks)) == (4, 2)
    assert {image[name] for name in image if name.startswith("trunk.stem.")} == {5}
    assert {image[name] for name in image if name.startswith(("trunk.final_conv.", "trunk.head."))} == {0}
    assert {text[name] for name in text if ".embeddings." in name} == {3}
    assert {text[name] for name in text if ".layer.1." in name} == {1}
    assert {text[name] for name in text if name.startswith("proj.")} == {0}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lora", "4"], "--lora is not supported here"),
        (["--patch-dropout", "0.5"], "--patch-dropout is not supported here"),
        (["--unfreeze-last", "1"], "--unfreeze-last is not supported here"),
        (["--image-size", "96"], "--image-size is not supported for the timm trunk fastvit_mci_tiny"),
        (["--lock", "image", "--unlock-last", "9"], "the image tower of"),
    ],
)
def test_what_has_no_meaning_for_them_is_one_sentence(
    flags: list[str], said: str, weights: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data-file", str(shapes), "--run-dir", str(tmp_path / "run"), "--init", str(weights), *SHORT, *flags]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
