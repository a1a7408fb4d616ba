"""Names of the Hugging Face hub: found in its cache, without a network, and never mixed up with paths."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from clip_core.errors import CheckpointError
from clip_core.model.hub import fetch, hub_name
from tests.models import ROOT
from tests.published import hugging_face_model, open_clip_model, save_open_clip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An open_clip hub folder."""
    return save_open_clip(tmp_path / "open_clip", open_clip_model())


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    folder = tmp_path / "hugging_face"
    hugging_face_model().save_pretrained(folder)
    return folder


def cached(cache: Path, name: str, folder: Path) -> None:
    """Put a folder into a cache of the Hugging Face hub, as huggingface_hub lays it out."""
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)


def from_hub(cache: Path, name: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = f"from clip_core.model.published import read_published; print(read_published({name!r}).config.embed_dim)"
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )


def test_a_name_of_the_hub_is_looked_for_in_its_cache_first(tmp_path: Path, folder: Path, hugging_face: Path) -> None:
    cached(tmp_path / "cache", "org/open", folder)
    cached(tmp_path / "cache", "org/hf", hugging_face)
    for name, embed_dim in (("org/open", "32"), ("hf-hub:org/open", "32"), ("org/hf", "24")):
        done = from_hub(tmp_path / "cache", name, tmp_path)
        assert done.stdout.strip() == embed_dim, done.stderr


def test_a_name_of_the_hub_without_network_is_one_sentence(tmp_path: Path) -> None:
    last = from_hub(tmp_path / "cache", "org/nothing", tmp_path).stderr.strip().splitlines()[-1]
    assert "org/nothing was not found here, nor in the cache of the Hugging Face hub" in last


def test_a_hub_that_cannot_be_reached_is_one_sentence_without_waiting(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clip_core.cli.infer", "similarity", "--model", "org/nothing", "--image", "x"]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://hub.invalid", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--texts", "a"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "the hub cannot be reached" in done.stderr


def test_a_path_that_is_mistyped_is_not_taken_for_a_name_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    last = from_hub(tmp_path / "cache", "runs/nothing", tmp_path).stderr.strip().splitlines()[-1]
    assert "no weights at runs/nothing" in last


def test_only_what_looks_like_a_name_and_is_no_path_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert hub_name("org/name") == hub_name("hf-hub:org/name") == hub_name("hf-hub:org/name") == "org/name"
    assert hub_name("hf-hub:here/name") == "here/name"
    for path in ("here/name", "./org/name", "/org/name", "org", "org/name/more", "../name", "org/../name"):
        assert hub_name(path) is None


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_an_incomplete_cache_is_not_used(
    tmp_path: Path, folder: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(tmp_path / "cache", "org/open", folder)
    found = fetch("org/open")
    assert (found / missing).is_file()
    (found / missing).unlink()
    with pytest.raises(CheckpointError, match="org/open"):
        fetch("org/open")
