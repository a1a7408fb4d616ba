"""Commands as a user can paste them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clip_tui.commands import near, ours, spelt
from tests.conftest import command_environment


@pytest.mark.parametrize("name", ["clip-tui", "clip-train", "clip-infer", "clip-export"])
@pytest.mark.parametrize("path", [os.environ.get("PATH", ""), "/nowhere"])
def test_our_commands_run_as_they_are_written(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", path)
    command = [*ours(name), "--help"]
    if command[0] == name:
        assert path != "/nowhere"
    done = subprocess.run(command, env=command_environment() | {"PATH": path}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_command_that_is_not_installed_is_run_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert ours("clip-infer")[-2:] == ["-m", "clip_core.cli.infer"]


def test_a_path_below_the_current_directory_is_written_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert near(tmp_path / "a" / "b") == "a/b"
    assert near(tmp_path.parent / "c") == str(tmp_path.parent / "c")


def test_spaces_are_quoted() -> None:
    assert spelt(["clip-infer", "a red circle"]) == "clip-infer 'a red circle'"
