"""No command contacts a network, and none leaves an id of this machine behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_core.cli import data, infer
from tests.models import ROOT, images_of, own_bundle, own_cache, tiny_bundle, tiny_run

__all__ = ["own_bundle", "own_cache", "tiny_bundle", "tiny_run"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the filter on system calls is Linux's")

Command = Callable[[Path, Path], list[object]]


def traced(home: Path, *arguments: object, given: str = "") -> subprocess.CompletedProcess[str]:
    """A child with a home of its own that dies of SIGSYS when it opens a network socket."""
    (home / "trap").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "no_network.py", home / "trap" / "sitecustomize.py")
    variables = {name: value for name, value in os.environ.items() if name not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    variables |= {"PYTHONPATH": f"{home / 'trap'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    variables |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONIOENCODING": "latin-1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=variables, cwd=home, input=given, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip


def module(of: object) -> list[object]:
    return ["-m", of.__spec__.name]  # type: ignore[attr-defined]


def test_the_trap_catches_a_socket(tmp_path: Path) -> None:
    local = "import socket; socket.socket(socket.AF_UNIX); print('local')"
    assert traced(tmp_path / "local", "-c", local).stdout == "local\n"
    done = traced(tmp_path / "remote", "-c", "import socket; socket.socket(socket.AF_INET)")
    assert done.returncode == -signal.SIGSYS


COMMANDS: dict[str, Command] = {
    "clip-infer": lambda run, image: [
        *module(infer), "classification", "--model", run / "bundle", "--image", image, "--classes", "红色", "蓝色"
    ],
    "example.py": lambda run, image: [run / "bundle" / "example.py", image, "红色", "蓝色"],
    "server": lambda run, image: ["-m", "clip_core.inference.server", run / "bundle"],
    "clip-data": lambda run, image: [*module(data), "check", run.parent / f"{run.name}-shapes" / "dataset.json"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_contacts_no_network_and_prints_in_any_locale(name: str, tiny_run: Path, tmp_path: Path) -> None:
    image = images_of(tiny_run)[0]
    question = {"id": 1, "op": "similarity", "image": str(image), "texts": ["红色"]}
    home = tmp_path / "home"
    done = traced(home, *COMMANDS[name](tiny_run, image), given=json.dumps(question))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert "elemetry" not in done.stderr
    if name in ("clip-infer", "example.py"):
        assert "??" in done.stdout
    left = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert not {path for path in left if not path.startswith(("trap/", "cache/clip-tui/"))}
