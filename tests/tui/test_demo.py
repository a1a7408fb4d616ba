"""The demo: its recipe, which run it takes, how it ends; for real, with a small recipe."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_core.run.writer import RunWriter
from clip_tui.demo import DEMO_FLAGS, choose_run, recipe
from tests.conftest import SHORT_RUN, command_environment

SMALL = [*SHORT_RUN, "--synthetic-count", "90", "--synthetic-size", "32"]


def demo(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clip_tui.cli", "demo", "--", *flags],
        cwd=cwd, env=command_environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_flags_take_the_place_of_the_demos_own() -> None:
    assert recipe() == tuple(DEMO_FLAGS)
    flags = recipe(["--epochs=3", "--seed", "5"])
    assert flags.count("--epochs") == 1
    assert flags[flags.index("--epochs") + 1] == "3"
    assert flags[-2:] == ("--seed", "5")


@pytest.mark.parametrize(
    ("state", "name"), [(State.FINISHED, "demo"), (State.STOPPED, "demo"), (State.FAILED, "demo"), (None, "demo")]
)
def test_a_demo_goes_on_until_it_is_exported(tmp_path: Path, state: State | None, name: str) -> None:
    if state is not None:
        writer = RunWriter(tmp_path / "runs" / "demo")
        writer.status(state=state, pid=os.getpid())
        writer.close()
    assert choose_run(tmp_path, ()).run == tmp_path / "runs" / name


def test_without_a_terminal_the_demo_does_all_its_work_and_says_what_came_of_it(tmp_path: Path) -> None:
    done = demo(*SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert RunReader(tmp_path / "demo" / "runs" / "demo").state() is State.FINISHED
    said = done.stdout
    assert "step 4/4" in said, "the trainer's lines are passed on"
    assert re.search(r"^trained   demo/runs/demo/checkpoints/step_\d+$", said, re.M)
    assert re.search(r"^scores    .*zero-shot top-1 [\d.]+%", said, re.M)
    assert "onnx/text_model.onnx" in said
    assert "passed against PyTorch" in said
    assert re.search(r"^ +\d+\.\d ?% +an? \w+ \w+$", said, re.M), "a class with its probability"
    commands = said.partition("next:\n")[2].splitlines()
    assert len(commands) == 3
    assert "\x1b" not in said

    retrieval = shlex.split(commands[1])
    found = subprocess.run(retrieval, cwd=tmp_path, env=command_environment(), capture_output=True, check=False)
    assert found.returncode == 0, found.stderr

    assert choose_run(tmp_path / "demo", ()).run == tmp_path / "demo" / "runs" / "demo-2"


def test_a_failing_trainer_ends_the_demo_with_its_code_and_one_sentence(tmp_path: Path) -> None:
    done = demo("--image-size", "30", "--patch-size", "16", "--synthetic-count", "90", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("clip-tui: clip-train failed with code 2 (")
    assert "not a multiple of" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
