"""What every test may use: a drawn data set and a short real run, made once a session by the real commands."""

import atexit
import io
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from clip_core.data.synthetic import create_synthetic
from clip_core.files import scratch_folder

# Tests run beside each other; more threads than cores only make them wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example that takes long on a loaded machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Decoded images and galleries of tests, and of the commands that they start, stay out of the user's cache.
_SCRATCH = scratch_folder("tests")
_CACHE = str(_SCRATCH.__enter__())
os.environ["XDG_CACHE_HOME"] = _CACHE
os.environ["XDG_CONFIG_HOME"] = _CACHE  # nor do the settings of the app come from the user, or change them
atexit.register(_SCRATCH.__exit__, None, None, None)

pytest_plugins = ["tests.faults.table"]

SHORT_RUN = [
    "--epochs", "2", "--batch-size", "32", "--image-size", "32", "--model-size", "nano", "--layers", "1",
    "--width", "64", "--log-every", "1", "--device", "cpu", "--precision", "fp32",
]  # fmt: skip


def clip_train(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The whole command, in this process: a child would import PyTorch for four seconds first.

    Tests of signals, of standard streams and of what is imported start a child: `tests.running.start`.
    """
    from clip_core.cli.train_command import run  # not every test trains

    out, errors = io.StringIO(), io.StringIO()
    with chdir(cwd), redirect_stdout(out), redirect_stderr(errors):
        code = run(flags)
    return subprocess.CompletedProcess(flags, code, out.getvalue(), errors.getvalue())


def command_environment() -> dict[str, str]:
    root = str(Path(__file__).parent.parent)
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _one_registry() -> None:
    """PyTorch's converter builds its table of all operators anew for each graph; here once a session."""
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    if module is not None and not hasattr(module.ONNXRegistry.from_torchlib, "cache_info"):
        module.ONNXRegistry.from_torchlib = staticmethod(cache(module.ONNXRegistry.from_torchlib))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair list of 180 drawn shapes, ten of each combination."""
    data_file = tmp_path_factory.mktemp("shapes") / "dataset.json"
    create_synthetic(data_file, count=180, seed=0, size=32)
    return data_file


@pytest.fixture(scope="session")
def trained_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ten steps; read it, do not write to it."""
    run = tmp_path_factory.mktemp("runs") / "short"
    done = clip_train("--data-file", str(shapes), "--run-dir", str(run), *SHORT_RUN, cwd=run.parent)
    assert done.returncode == 0, done.stderr + done.stdout
    return run
