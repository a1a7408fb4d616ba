"""clip-export as a user runs it; what the converter writes to the streams needs a real process."""

from pathlib import Path

import pytest

from clip_core.inference.bundle import read_manifest
from export.cli import main
from export.formats import MARKER
from tests.export.checkpoints import checkpoint
from tests.export.test_bundle import make_chaotic
from tests.models import command, images_of, make_run, python


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_the_command_prints_the_table_and_nothing_of_the_converter(run: Path, tmp_path: Path) -> None:
    done = python("-m", "export.cli", run, "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "accepted" in done.stdout
    assert "torch." not in done.stdout  # as in [torch.onnx]
    rows = [line for line in done.stdout.splitlines() if line.startswith("onnx/")]
    assert len(rows) == len(read_manifest(tmp_path / "bundle").parity.rows)


def test_the_command_exits_5_when_parity_fails(run: Path) -> None:
    make_chaotic(run)
    done = command(main, run)
    assert done.returncode == 5
    assert "rejected" in done.stdout
    assert done.stderr.startswith("clip-export: ")
    assert done.stderr.count("\n") == 1
    assert not (run / "bundle").exists()


def test_a_run_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    done = python("-m", "export.cli", tmp_path / "nowhere")
    assert done.returncode == 1
    assert "no model at" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_writes_and_says_how_to_read(tmp_path: Path):
    checkpoint(tmp_path / "model")
    for to, call in (("hf", "AutoModel.from_pretrained"), ("open_clip", "local-dir:")):
        done = command(main, tmp_path / "model", "--format", to, "--out", tmp_path / to)
        assert done.returncode == 0, done.stderr
        assert call in done.stdout
        assert (tmp_path / to / MARKER).is_file()


def test_the_command_refuses_in_one_sentence(tmp_path: Path):
    run = make_run(tmp_path / "run")
    done = command(main, run, "--format", "hf")
    assert done.returncode == 2
    assert done.stderr.startswith("clip-export: ")
    assert "mean pooling" in done.stderr
    assert done.stderr.count("\n") == 1
    done = command(main, run, "--format", "hf", "--images", images_of(run)[0].parent)
    assert done.returncode == 2
    assert "--images" in done.stderr
    done = command(main, run, "--format", "safetensors")
    assert done.returncode == 2
    assert "onnx" in done.stderr
