"""Checkpoints: complete or absent, readable by others, and deleted only when something newer replaces them."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clip_core.errors import CheckpointError
from clip_core.model.checkpoint import (
    delete_damaged,
    delete_superseded,
    find_checkpoint,
    keep_checkpoint,
    load_model,
    read_meta,
    save_checkpoint,
    valid_checkpoints,
    write_meta,
)
from clip_core.model.clip import CLIP
from clip_core.run.paths import META, RunPaths
from tests.models import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose best checkpoint is of step 7."""
    return make_run(tmp_path / "run")


@pytest.fixture
def model(run: Path) -> CLIP:
    return load_model(run).model


def save(run: Path, model: CLIP, step: int, *, kept: bool = False) -> Path:
    folder = RunPaths(run).checkpoint(step)
    moments = {"moment": torch.ones(2)}
    save_checkpoint(folder, model=model, tensors=moments, state={"a": 1}, step=step, epoch=1, scores={}, kept=kept)
    return folder


def steps(run: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step_")) for folder in RunPaths(run).checkpoints.iterdir())


@pytest.fixture(params=[0o022, 0o027], ids=["022", "027"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_have_the_mode_of_the_umask(run: Path, model: CLIP, umask: int) -> None:
    files = list(save(run, model, 8).iterdir())
    assert len(files) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_a_checkpoint_carries_its_schema_and_another_one_is_refused(run: Path, model: CLIP) -> None:
    folder = save(run, model, 8)
    meta = read_meta(folder)
    assert (meta["schema"], meta["step"], meta["kept"]) == (3, 8, False)
    (folder / META).write_text(json.dumps(meta | {"schema": 1}))
    with pytest.raises(CheckpointError, match="another version"):
        read_meta(folder)


def test_a_checkpoint_saved_by_request_is_not_deleted_and_does_not_count(run: Path, model: CLIP) -> None:
    for step in (8, 9, 10, 11):
        save(run, model, step, kept=step in (9, 11))
    delete_superseded(run, keep=1, best="step_0000007")
    assert steps(run) == [7, 9, 10, 11]
    keep_checkpoint(save(run, model, 12))  # saved automatically before it was asked for
    save(run, model, 13)
    delete_superseded(run, keep=1, best="step_0000013")
    assert steps(run) == [9, 11, 12, 13]
    assert len(valid_checkpoints(run)) == 4


def test_meta_is_deleted_first(run: Path, model: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(run, model, 8)
    save(run, model, 9)

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        delete_superseded(run, keep=1, best="step_0000007")
    assert folder.is_dir()
    assert folder not in valid_checkpoints(run)


def test_what_an_interrupted_or_damaged_save_left_is_deleted(run: Path, model: CLIP) -> None:
    damaged = save(run, model, 8)
    with (damaged / "model.safetensors").open("rb+") as handle:
        handle.write(b"\xff")
    (RunPaths(run).checkpoints / ".step_0000009.1.tmp").mkdir()
    with pytest.raises(CheckpointError, match="sha256 differ"):
        read_meta(damaged)
    delete_damaged(run)
    assert steps(run) == [7]


def test_the_best_checkpoint_of_a_run_is_the_one_that_is_meant(run: Path, model: CLIP) -> None:
    save(run, model, 8)
    assert find_checkpoint(run).name == "step_0000007"
    RunPaths(run).best.unlink()
    assert find_checkpoint(run).name == "step_0000008"


def test_weights_of_another_network_or_not_finite_are_refused(run: Path, model: CLIP) -> None:
    with torch.no_grad():
        model.text.positions[0, 0] = float("nan")
    folder = save(run, model, 8)
    with pytest.raises(CheckpointError, match=r"not finite in text.positions"):
        load_model(folder)


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(run: Path, model: CLIP) -> None:
    checkpoints = RunPaths(run).checkpoints
    (checkpoints / "step_0000008").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(run, model, 8)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_0000007", "step_0000008"]


@pytest.mark.parametrize("name", [META, "model.safetensors", "state.json"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(run: Path, name: str) -> None:
    file = RunPaths(run).checkpoint(7) / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError) as caught:
        load_model(RunPaths(run).checkpoint(7))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", ["[" * 100_000, '{"files":' * 100_000, "\x1b[31m", "1" * 10_000])
def test_a_meta_that_is_no_meta_is_refused(run: Path, content: str) -> None:
    (RunPaths(run).checkpoint(7) / META).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        load_model(run)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("tower", "changes"),
    [
        ("image", {"layers": 10**9}),
        ("image", {"layers": 900, "width": 60_000, "heads": 2}),
        ("image", {"mlp_width": 10**300}),
        ("image", {"norm_eps": -1e300}),
        ("text", {"vocab_size": 10**12}),
        ("text", {"vocab_size": 9_000_000, "width": 60_000}),
        ("text", {"norm_eps": float("nan")}),
    ],
)
def test_a_network_that_its_file_cannot_hold_is_refused_before_memory_is_taken(
    run: Path, tower: str, changes: dict[str, float]
) -> None:
    path = RunPaths(run).checkpoint(7) / META
    said = json.loads(path.read_text())
    said["model"][tower] |= changes
    write_meta(path.parent, said)
    with pytest.raises(CheckpointError, match=r"does not describe a network|do not belong together") as caught:
        load_model(run)
    assert str(caught.value).isprintable()


def test_a_mistake_in_a_network_is_named_by_its_place(run: Path) -> None:
    path = RunPaths(run).checkpoint(7) / META
    said = json.loads(path.read_text())
    said["model"]["image"]["norm_eps"] = -1e300
    path.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="its digest differs"):
        load_model(run)
    write_meta(path.parent, said)
    with pytest.raises(
        CheckpointError, match=r"network: image\.norm_eps is -1e\+300; it should be greater than or equal"
    ):
        load_model(run)
