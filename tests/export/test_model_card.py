"""README.md of a bundle."""

import json
from pathlib import Path

import pytest

from clip_core.inference.bundle import read_manifest
from clip_core.run.reader import RunReader
from export.bundle import export_bundle
from export.model_card import model_card
from tests.models import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_captions_cannot_write_into_the_model_card(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["classes"] = ["a `code` <script>", "[link](http://x)", "new\n# Title", "\x1b[31mred"]
    (run / "config.json").write_text(json.dumps(config))
    export_bundle(run)
    card = (run / "bundle" / "README.md").read_text()
    assert not [part for part in ("<script>", "[link]", "\x1b", "\n# Title") if part in card]


def test_the_card_names_data_and_scores_and_a_checkpoint_alone_has_no_data(run: Path, tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    card = model_card(manifest, RunReader(run).record(), (1000, 2000), ["transformers.js reads it."])
    assert "100 image-text pairs with 100 images from `dataset.json`; validated on 36 pairs" in card
    assert "| recall@1 image to text | 25.0% |" in card
    assert "1,000 parameters" in card
    assert "## Other software\n\n- transformers.js reads it.\n" in card
    assert "training data is unknown" in model_card(manifest, None, (1, 2), [])
