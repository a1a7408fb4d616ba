"""Small real runs and bundles with random weights, made through the same code that a training run uses."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import pytest
import torch

from clip_core.config import TrainConfig
from clip_core.data.synthetic import create_synthetic
from clip_core.data.tokenizer import train_bpe, train_characters
from clip_core.model.checkpoint import save_checkpoint
from clip_core.model.clip import CLIP
from clip_core.model.model_size import parameters
from clip_core.network import ClipConfig, ImageTower, Preprocessing, TextTower
from clip_core.run.paths import RunPaths
from clip_core.run.records import DataFacts, Parameters, Pointer, Recipe, RunRecord, ValidationPairs
from export.bundle import export_bundle

ROOT = Path(__file__).parent.parent
NO_TORCH = """\
import sys

class _Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "onnx", "onnxscript", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, _Blocked())
"""


def make_run(run: Path, *, seed: int = 0, tokenizer: str = "char", image: dict | None = None, count: int = 36) -> Path:
    """A run directory as a trainer leaves it, with drawn images beside it and random weights."""
    data_file = run.parent / f"{run.name}-shapes" / "dataset.json"
    create_synthetic(data_file, count=count, seed=seed, size=40)
    pairs = json.loads(data_file.read_text())
    captions = sorted({pair["caption"] for pair in pairs})
    trained = train_characters(captions, 24) if tokenizer == "char" else train_bpe(captions, 300, 24)
    torch.manual_seed(seed)
    config = ClipConfig(
        embed_dim=16,
        image=ImageTower(**{"image_size": 32, "patch_size": 16, "width": 32, "heads": 2, "layers": 2, **(image or {})}),
        text=TextTower(
            vocab_size=trained.vocab_size, end_token=trained.end_token, context_length=24, width=32, heads=2, layers=2
        ),
        preprocessing=Preprocessing(image_size=32),
    )
    run.mkdir(parents=True)
    paths, model = RunPaths(run), CLIP(config)
    settings = TrainConfig(data={"data_file": str(data_file)})
    RunRecord(
        config=settings,
        resolved=Recipe(
            device="cpu", precision="fp32", batch_size=32, lr=1e-3, steps_per_epoch=4, steps=8, warmup_steps=1,
            eval_every=4, checkpoint_every=4, weight_decay=0.1, layer_decay=1.0,
        ),
        model=config,
        parameters=Parameters(image=parameters(model.image), text=parameters(model.text), trainable=parameters(model)),
        data=DataFacts(train_pairs=100, train_images=100, val_pairs=36, val_images=36, classes=captions),
        device_name="CPU",
        seed=seed,
    ).write(paths.config)  # fmt: skip
    trained.save(paths.tokenizer)
    ValidationPairs(
        pairs=[{"image": str(data_file.parent / p["image"]), "caption": p["caption"]} for p in pairs]
    ).write(paths.validation)
    save(run, model, step=7)
    return run


def save(run: Path, model: CLIP, step: int, scores: dict[str, float] | None = None) -> None:
    """Make `model` the best checkpoint of the run."""
    folder, scores = RunPaths(run).checkpoint(step), scores or {"image_to_text_recall@1": 0.25}
    save_checkpoint(folder, model=model, tensors={}, state={}, step=step, epoch=1, scores=scores)
    Pointer(checkpoint=folder.name, step=step, scores=scores).write(RunPaths(run).best)


def images_of(run: Path) -> list[Path]:
    return [Path(pair.image) for pair in ValidationPairs.read(RunPaths(run).validation).pairs]


def python(*arguments: object, torch_free: Path | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    """A real child process; with `torch_free`, a folder to put the blocker into, one that cannot import torch."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment(torch_free), capture_output=True, text=True,
        timeout=240, check=False, **options,
    )  # fmt: skip


def command(main: Callable[[list[str]], int], *arguments: object) -> subprocess.CompletedProcess[str]:
    """A whole command in this process, where a child would import PyTorch and the converter first."""
    out, errors = io.StringIO(), io.StringIO()
    words = [str(argument) for argument in arguments]
    with redirect_stdout(out), redirect_stderr(errors):
        code = main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), errors.getvalue())


def environment(torch_free: Path | None = None) -> dict[str, str]:
    paths = [str(ROOT)]
    if torch_free is not None:
        (torch_free / "sitecustomize.py").write_text(NO_TORCH)
        paths.insert(0, str(torch_free))
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@cache
def _exported_run(folder: Path) -> Path:
    run = make_run(folder / "tiny")
    export_bundle(run)
    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its bundle; read it, do not write to it."""
    return _exported_run(tmp_path_factory.getbasetemp() / "models")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path) -> Path:
    """The bundle of `tiny_run`; read it, do not write to it."""
    return tiny_run / "bundle"


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, for tests that spoil it."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Galleries of tests stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder
