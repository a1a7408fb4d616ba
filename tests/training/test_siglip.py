"""Fine-tuning SigLIP with the command: its loss, its padding, its cleaning, and the way back to transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from clip_core.cli.train import main
from clip_core.data.cleaning import Cleaning
from clip_core.model.checkpoint import load_model
from clip_core.run.reader import RunReader
from export.formats import export_weights
from tests.published_siglip import save_hugging_face, siglip_model
from tests.running import latest

SHORT = ["--epochs", "1", "--batch-size", "32", "--device", "cpu", "--precision", "fp32", "--log-every", "1"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hugging_face(tmp_path_factory.mktemp("weights") / "siglip", siglip_model(), "v1")


@pytest.fixture(scope="module", params=["full", "lora"])
def tuned(
    request: pytest.FixtureRequest, weights: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp(request.param) / "run"
    flags = ["--lora", "2", "--lock", "text"] if request.param == "lora" else []
    given = ["--data-file", str(shapes), "--run-dir", str(run), "--init", str(weights)]
    assert main([*given, *SHORT, *flags]) == 0
    return run


def test_the_loss_is_the_sigmoid_loss_of_the_pretraining(tuned: Path) -> None:
    record = RunReader(tuned).record()
    assert record.resolved.loss == "sigmoid"
    reasons = {decision.setting: decision.reason for decision in record.decisions}
    assert reasons["loss"] == "the pretrained weights have a logit bias"


def test_every_caption_stays_padded_and_cleaned(tuned: Path) -> None:
    loaded = load_model(tuned)
    tokenizer = loaded.tokenizer
    assert tokenizer.cleaning is Cleaning.SIGLIP
    assert tokenizer.encode(["A red circle!"]).shape == (1, 64)
    assert json.loads((tuned / "tokenizer.json").read_text())["padding"]["strategy"] == {"Fixed": 64}


@torch.no_grad()
def test_a_tuned_run_goes_back_to_transformers(tuned: Path, weights: Path, tmp_path: Path) -> None:
    out = export_weights(latest(tuned), tmp_path / "out", to="hf")
    before, after = (load_file(folder / "model.safetensors") for folder in (weights, out))
    assert before.keys() == after.keys()
    assert not torch.equal(before["vision_model.head.mlp.fc1.weight"], after["vision_model.head.mlp.fc1.weight"])
    model, loaded = AutoModel.from_pretrained(out), load_model(latest(tuned))
    ids = torch.from_numpy(loaded.tokenizer.encode(["a red circle", "a blue square"]))
    theirs = torch.nn.functional.normalize(model.get_text_features(ids).pooler_output, dim=-1)
    torch.testing.assert_close(loaded.model.encode_text(ids), theirs, rtol=0, atol=1e-5)
