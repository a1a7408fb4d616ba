"""Runs with the sigmoid loss, as a user starts them: training, resuming, fine-tuning and export."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clip_core.cli.train import main
from clip_core.errors import UsageError
from clip_core.inference.bundle import read_manifest
from clip_core.model.checkpoint import load_model, load_tensors
from clip_core.model.published import read_published
from clip_core.run.reader import RunReader
from export.bundle import export_bundle
from export.formats import export_weights
from tests.models import make_run
from tests.running import assert_same_run, latest, lines

SHORT = [
    "--epochs", "2", "--batch-size", "32", "--log-every", "1", "--device", "cpu", "--precision", "fp32",
    "--eval-every", "4", "--checkpoint-every", "3", "--keep-checkpoints", "100",
]  # fmt: skip
NEW = ["--image-size", "32", "--model-size", "nano", "--layers", "1"]
PLAIN = {"pooling": "class_token", "patch_bias": False, "pre_norm": True}  # what every format can say
WAYS: dict[str, list[str]] = {
    "scratch": [*NEW, "--ema", "0"],
    "ema": [*NEW, "--ema", "0.9"],
    "fine-tuned": ["--init"],
    "adapters": ["--lora", "2", "--lr", "1e-2", "--blend", "0.5", "--init"],
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights have no logit bias; read it, do not write to it."""
    return make_run(tmp_path_factory.mktemp("start") / "start", image=PLAIN)


Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(start: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The short run of a way, made once; read it, do not write to it."""
    made: dict[str, Path] = {}

    def make(way: str) -> Path:
        if way not in made:
            run = tmp_path_factory.mktemp(way) / "run"
            flags = [*WAYS[way], *([str(start)] if WAYS[way][-1] == "--init" else [])]
            assert main(["--data-file", str(shapes), "--run-dir", str(run), "--loss", "sigmoid", *SHORT, *flags]) == 0
            made[way] = run
        return made[way]

    return make


def bias_in(folder: Path) -> float:
    return float(load_tensors(folder / "model.safetensors")["logit_bias"])


@pytest.mark.parametrize("way", WAYS)
def test_resumed_in_the_middle_it_is_the_run_never_stopped(way: str, train: Train, tmp_path: Path) -> None:
    whole, parts = train(way), tmp_path / way
    shutil.copytree(whole, parts)
    for folder in (parts / "checkpoints").iterdir():
        if folder.name > "step_0000006" or folder.name.startswith("blend"):
            shutil.rmtree(folder)
    assert main(["--resume", "--run-dir", str(parts)]) == 0
    assert "resuming at step 6" in (parts / "train.log").read_text()
    assert_same_run(whole, parts)


def test_killed_before_its_first_checkpoint_it_starts_with_the_same_bias(train: Train, tmp_path: Path) -> None:
    whole, parts = train("fine-tuned"), tmp_path / "parts"
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints")
    (parts / "checkpoints").mkdir()
    assert main(["--resume", "--run-dir", str(parts)]) == 0
    assert_same_run(whole, parts)


@pytest.mark.parametrize("way", WAYS)
def test_the_logit_bias_is_trained_saved_and_reported(way: str, train: Train) -> None:
    run = train(way)
    record = RunReader(run).record()
    assert record.resolved.loss == "sigmoid"
    assert record.model.logit_bias
    folders = sorted((run / "checkpoints").glob("step_*"))
    assert bias_in(folders[0]) != bias_in(folders[-1])
    assert {"logit_bias/exp_avg", "logit_bias/exp_avg_sq"} <= load_tensors(folders[-1] / "state.safetensors").keys()
    reported = lines(run, "train")
    assert len({line["logit_bias"] for line in reported}) > 1
    if way != "ema":
        assert reported[-1]["logit_bias"] == pytest.approx(bias_in(folders[-1]), abs=1e-5)
    assert ", sigmoid loss" in (run / "train.log").read_text()


@pytest.mark.parametrize("way", ["scratch", "fine-tuned"])
def test_the_first_loss_is_of_the_order_of_chance_whatever_the_scale(way: str, train: Train) -> None:
    first = lines(train(way), "train")[0]
    assert first["logit_scale"] == pytest.approx(10 if way == "scratch" else 1 / 0.07, rel=1e-2)
    assert first["loss"] < 1.5 * first["chance"]


def test_the_validation_loss_is_the_runs_own(train: Train, shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "softmax"
    assert main(["--data-file", str(shapes), "--run-dir", str(run), *SHORT, *NEW]) == 0
    softmax, sigmoid = (lines(path, "eval")[0]["val_loss"] for path in (run, train("scratch")))
    assert softmax < 4 < sigmoid  # 18 validation pairs of 18 classes


def test_the_temperature_that_is_asked_for_is_the_one_it_starts_with(shapes: Path, tmp_path: Path) -> None:
    flags = ["--loss", "sigmoid", "--temperature", "0.05", *SHORT, *NEW]
    assert main(["--data-file", str(shapes), "--run-dir", str(tmp_path / "run"), *flags]) == 0
    assert lines(tmp_path / "run", "train")[0]["logit_scale"] == pytest.approx(20)


def test_weights_with_a_logit_bias_are_fine_tuned_with_the_sigmoid_loss_by_default(
    train: Train, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = train("fine-tuned")
    argv = ["--data-file", str(shapes), "--init", str(latest(given)), *SHORT]
    assert main([*argv, "--run-dir", str(tmp_path / "same")]) == 0
    record = RunReader(tmp_path / "same").record()
    assert record.resolved.loss == "sigmoid"
    reasons = {decision.setting: decision.reason for decision in record.decisions}
    assert reasons["loss"] == "the pretrained weights have a logit bias"
    assert bias_in(tmp_path / "same" / "checkpoints" / "step_0000000") == bias_in(latest(given))
    assert main([*argv, "--run-dir", str(tmp_path / "other"), "--loss", "softmax"]) == 0
    assert RunReader(tmp_path / "other").record().resolved.loss == "softmax"
    assert bias_in(latest(tmp_path / "other")) == bias_in(latest(given))
    capsys.readouterr()
    assert main([*argv, "--run-dir", str(tmp_path / "smoothed"), "--label-smoothing", "0.1"]) == 2
    assert "add --loss softmax" in capsys.readouterr().err


# ---------------------------------------------------------------- export


def test_open_clip_gets_the_bias_and_it_comes_back_bit_for_bit(train: Train, tmp_path: Path) -> None:
    out = export_weights(train("fine-tuned"), tmp_path / "out", to="open_clip")
    model, back = load_model(train("fine-tuned")).model.state_dict(), read_published(out)
    assert back.config.logit_bias
    assert model.keys() == back.weights.keys()
    assert all(torch.equal(model[name], back.weights[name]) for name in model)


def test_transformers_cannot_say_the_bias(train: Train, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be written for transformers: it has a bias of the logits"):
        export_weights(train("fine-tuned"), tmp_path / "out", to="hf")


@pytest.mark.parametrize("way", ["scratch", "adapters"])
def test_the_bundle_says_the_same_and_carries_the_bias(way: str, train: Train, tmp_path: Path) -> None:
    out, manifest = export_bundle(train(way), tmp_path / "bundle")
    model = load_model(train(way)).model
    assert manifest.parity.accepted
    assert read_manifest(out).logit_bias == model.get_parameter("logit_bias").item()
    assert read_manifest(out).logit_scale == model.logit_scale().item()
    assert f"logit bias: {model.get_parameter('logit_bias').item():.3f}" in (out / "README.md").read_text()
