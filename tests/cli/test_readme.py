"""The README's commands, run as they stand, in the order in which they stand."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from clip_core.data.synthetic import create_synthetic
from tests.conftest import command_environment
from tests.encoders import PREPROCESSOR, onnx_encoder, text_folder
from tests.published import open_clip_model, save_open_clip

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)


def shell_commands() -> list[str]:
    """What stands behind `$ ` at the start of a line."""
    return [line[2:] for _, block in BLOCKS for line in block.splitlines() if line.startswith("$ ")]


def run(command: str, cwd: Path) -> str:
    """A command of the project, from beside the interpreter that runs the tests."""
    name, *arguments = shlex.split(command)
    program = Path(sys.executable).parent / name
    done = subprocess.run(
        [str(program), *arguments],
        cwd=cwd,
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new user's folder: three pair lists, images of the names that the README has, and published weights."""
    here = tmp_path_factory.mktemp("readme")
    create_synthetic(here / "pairs.json", count=60, seed=0, size=32)
    for name in ("photos.json", "others.json"):
        shutil.copy(here / "pairs.json", here / name)
    drawn = here / json.loads((here / "pairs.json").read_text())[0]["image"]
    for name in ("images/red_apple.png", "photo.png", "a.jpg", "b.jpg"):
        Image.open(drawn).save(here / name)
    save_open_clip(here / "weights", open_clip_model())
    onnx_encoder(here / "encoders" / "mobilenet.onnx")
    (here / "encoders" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    text_folder(here / "encoders" / "minilm", "bert", pooling="mean_tokens")
    return here


def test_the_readme_has_the_whole_main_job() -> None:
    names = [command.split()[0] for command in shell_commands()]
    assert names == ["clip-data", *["clip-train"] * 3, "clip-export", "clip-export", "clip-infer"]


def test_every_command_of_the_readme_works_as_it_stands(folder: Path) -> None:
    check, train, align, tune, write, export, infer = (run(command, folder) for command in shell_commands())
    assert "60 usable pairs" in check
    assert "finished at step" in train
    assert "trainable parameters of" in align
    assert "the best checkpoint is blend_0.5" in tune
    assert "equal to the model bit for bit" in write
    assert "accepted" in export
    assert "%" in infer
    python = next(block for language, block in BLOCKS if language == "python")
    done = subprocess.run(
        [sys.executable, "-c", python],
        cwd=folder,
        env=command_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
