"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clip_core.data.synthetic import create_synthetic
from clip_core.files import sha256
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from tests.conftest import SHORT_RUN, clip_train, command_environment
from tests.running import assert_same_run, latest, lines, start, wait_for_step

LONGER = [
    "--epochs", "6", *SHORT_RUN[2:], "--eval-every", "7", "--checkpoint-every", "4", "--keep-checkpoints", "100",
]  # fmt: skip


def test_stopped_by_a_signal_in_the_middle_of_an_epoch_and_resumed_it_is_the_same_run(
    shapes: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert clip_train("--data-file", str(shapes), "--run-dir", str(whole), *LONGER, cwd=tmp_path).returncode == 0
    child = start("--data-file", str(shapes), "--run-dir", str(parts), *LONGER, cwd=tmp_path)
    wait_for_step(parts, 8, child)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 128 + signal.SIGTERM
    status = RunReader(parts).status()
    assert status is not None
    assert status.state is State.STOPPED
    assert 8 <= status.step < 30
    assert clip_train("--resume", "--run-dir", str(parts), cwd=tmp_path).returncode == 0
    assert_same_run(whole, parts)


def test_stopped_with_sampled_captions_bf16_weights_and_muon_and_resumed_it_is_the_same_run(
    shapes: Path, tmp_path: Path
) -> None:
    pairs = json.loads(shapes.read_text())
    again = [{"image": pair["image"], "caption": f"this is {pair['caption']}"} for pair in pairs]
    twice = shapes.parent / "twice.json"
    twice.write_text(json.dumps(pairs + again))
    in_bf16 = ["bf16" if value == "fp32" else value for value in LONGER]
    flags = [
        "--data-file", str(twice), "--captions", "sample", *in_bf16, "--optimizer", "muon",
        "--patch-dropout", "0.5",
    ]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert clip_train(*flags, "--run-dir", str(whole), cwd=tmp_path).returncode == 0
    child = start(*flags, "--run-dir", str(parts), cwd=tmp_path)
    wait_for_step(parts, 8, child)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 128 + signal.SIGTERM
    assert clip_train("--resume", "--run-dir", str(parts), cwd=tmp_path).returncode == 0
    assert_same_run(whole, parts)
    assert RunReader(whole).record().resolved.steps_per_epoch == 162 // 32  # images, not pairs


def test_killed_between_steps_it_goes_on_from_the_last_checkpoint_as_the_same_run(shapes: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert clip_train("--data-file", str(shapes), "--run-dir", str(whole), *LONGER, cwd=tmp_path).returncode == 0
    child = start("--data-file", str(shapes), "--run-dir", str(parts), *LONGER, cwd=tmp_path)
    wait_for_step(parts, 10, child)
    child.kill()
    child.wait()
    assert RunReader(parts).state() in (State.KILLED, State.FINISHED)
    assert clip_train("--resume", "--run-dir", str(parts), cwd=tmp_path).returncode == 0
    assert_same_run(whole, parts)
    steps = [line["step"] for line in lines(parts, "train")]
    assert len(steps) == len(set(steps)) == 30


def test_resuming_a_checkpoint_that_was_damaged_falls_back_to_the_one_before(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    folder = latest(run)
    weights = folder / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    done = clip_train("--resume", "--run-dir", str(run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 5" in done.stdout
    assert json.loads((run / "best.json").read_text())["checkpoint"]
    assert sha256(weights) == json.loads((folder / "meta.json").read_text())["files"]["model.safetensors"]["sha256"]


def test_an_interrupt_stops_after_the_step_with_a_checkpoint_and_exit_code_130(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = start("--data-file", str(shapes), "--run-dir", str(run), "--epochs", "500", *LONGER[2:], cwd=tmp_path)
    wait_for_step(run, 3, child)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    status = RunReader(run).status()
    assert status is not None
    assert latest(run).name == f"step_{status.step:07d}"


def test_a_closed_terminal_changes_nothing_for_the_trainer(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    master, slave = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "clip_core.cli.train", "--data-file", str(shapes), "--run-dir", str(run), *LONGER],
        cwd=tmp_path, env=command_environment(), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    wait_for_step(run, 2, child)
    os.close(master)
    os.kill(child.pid, signal.SIGHUP)
    assert child.wait(120) == 0
    status = RunReader(run).status()
    assert status is not None
    assert status.state is State.FINISHED
    assert "finished" in (run / "train.log").read_text()


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch over a list of its own, with a relative path, in the folder that is returned."""
    folder = tmp_path_factory.mktemp("own")
    create_synthetic(folder / "data" / "list.json", count=36, seed=0, size=32)
    done = clip_train("--data", "data/list.json", "--run-dir", "run", *SMALL, "--epochs", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


SMALL = ["--image-size", "32", "--model-size", "nano", "--layers", "1", "--width", "64", "--device", "cpu"]


def test_a_run_with_a_relative_data_path_resumes_from_any_folder(own_data: Path, tmp_path: Path) -> None:
    run = shutil.copytree(own_data / "run", tmp_path / "run")
    done = clip_train("--resume", "--run-dir", str(run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stdout


def test_a_run_whose_data_were_moved_resumes_with_their_new_place_and_remembers_it(
    own_data: Path, tmp_path: Path
) -> None:
    run, moved = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(own_data / "run", run)
    shutil.copytree(own_data / "data", moved)
    record = RunReader(run).record()
    gone = record.config.data.model_copy(update={"data_file": tmp_path / "gone" / "list.json"})
    record.model_copy(update={"config": record.config.model_copy(update={"data": gone})}).write(run / "config.json")
    refused = clip_train("--resume", "--run-dir", "run", cwd=tmp_path)
    assert refused.returncode == 1
    assert "give their new path with --data" in refused.stderr
    assert clip_train("--resume", "--run-dir", "run", "--data", "elsewhere/list.json", cwd=tmp_path).returncode == 0
    assert RunReader(run).record().config.data.data_file == moved / "list.json"
    images = [Path(pair.image) for pair in RunReader(run).validation_pairs().pairs]
    assert all(image.is_relative_to(moved) for image in images)
    assert clip_train("--resume", "--run-dir", "run", cwd=tmp_path).returncode == 0


@pytest.mark.fault("data or config.json changed between stop and resume")
def test_other_pairs_are_refused_and_what_differs_is_said(own_data: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(own_data / "run", run)
    shutil.copytree(own_data / "data", other)
    pairs = json.loads((other / "list.json").read_text())
    pairs[3]["caption"] = "a \x1b[31mpurple cow"
    (other / "list.json").write_text(json.dumps(pairs[:-2]))
    done = clip_train("--resume", "--run-dir", "run", "--data", str(other / "list.json"), cwd=tmp_path)
    assert done.returncode == 1
    assert "3 are missing (first: usable pair 4) and 1 is new or changed" in done.stderr
    assert "purple cow" in done.stderr
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_after_a_resume_the_pace_starts_again(own_data: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(own_data / "run", tmp_path / "run"))
    assert clip_train("--resume", "--run-dir", str(run), cwd=tmp_path).returncode == 0
    resumed = [line for line in lines(run, "event") if line["message"] == "resumed"]
    assert [line["pace"] for line in resumed] == ["restart"]
    status = RunReader(run).status()
    assert status is not None
    assert status.train_seconds > 0
