"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.numpy import load_file

from clip_core.files import sha256, write_json
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from tests.conftest import SHORT_RUN, clip_train, command_environment

LONGER = [
    "--epochs", "6", *SHORT_RUN[2:], "--eval-every", "7", "--checkpoint-every", "4", "--keep-checkpoints", "100",
]  # fmt: skip


def start(*flags: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "clip_core.cli.train", *flags],
        cwd=cwd, env=command_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_step(run: Path, step: int, child: subprocess.Popen[str], seconds: float = 120) -> None:
    reader, deadline = RunReader(run), time.time() + seconds
    while time.time() < deadline:
        if any(m["kind"] == "train" and m["step"] >= step for m in reader.new_metrics()):
            return
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within {seconds} s")


def figures(run: Path) -> list[tuple[object, ...]]:
    """What a run measured, without what depends on the clock or on when it was interrupted."""
    lines = [m for m in RunReader(run).new_metrics() if m["kind"] in ("train", "eval")]
    keys = ("kind", "step", "loss", "grad_norm", "lr", "val_loss", "mean_recall")
    return sorted(tuple(m.get(key) for key in keys) for m in lines)


def assert_same_run(one: Path, other: Path) -> None:
    last = [RunReader(run).pointer("latest") for run in (one, other)]
    assert last[0] is not None
    assert last[1] is not None
    for name in ("model.safetensors", "state.safetensors"):
        first, second = load_file(last[0] / name), load_file(last[1] / name)
        assert first.keys() == second.keys()
        assert all(first[key].tobytes() == second[key].tobytes() for key in first)
    assert figures(one) == figures(other)


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
    flags = (
        "--data-file",
        str(twice),
        "--captions",
        "sample",
        *in_bf16,
        "--optimizer",
        "muon",
        "--patch-dropout",
        "0.5",
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert clip_train(*flags, "--run-dir", str(whole), cwd=tmp_path).returncode == 0
    child = start(*flags, "--run-dir", str(parts), cwd=tmp_path)
    wait_for_step(parts, 8, child)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 128 + signal.SIGTERM
    assert clip_train("--resume", "--run-dir", str(parts), cwd=tmp_path).returncode == 0
    assert_same_run(whole, parts)
    resolved = RunReader(whole).config()["resolved"]
    assert resolved["steps_per_epoch"] == 162 // 32  # images, not pairs


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
    steps = [m["step"] for m in RunReader(parts).new_metrics() if m["kind"] == "train"]
    assert len(steps) == len(set(steps)) == 30


def test_resuming_a_checkpoint_that_was_damaged_falls_back_to_the_one_before(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    latest = RunReader(run).pointer("latest")
    assert latest is not None
    weights = latest / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    done = clip_train("--resume", "--run-dir", str(run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 5" in done.stdout
    assert json.loads((run / "best.json").read_text())["checkpoint"]
    assert sha256(weights) == json.loads((latest / "meta.json").read_text())["files"]["model.safetensors"]["sha256"]


def test_an_interrupt_stops_after_the_step_with_a_checkpoint_and_exit_code_130(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = start("--data-file", str(shapes), "--run-dir", str(run), "--epochs", "500", *LONGER[2:], cwd=tmp_path)
    wait_for_step(run, 3, child)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    latest = RunReader(run).pointer("latest")
    status = RunReader(run).status()
    assert latest is not None
    assert status is not None
    assert latest.name == f"step_{status.step:07d}"


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


def test_a_run_from_before_anything_was_left_out_goes_on_whole(shapes: Path, tmp_path: Path) -> None:
    pairs = json.loads(shapes.read_text())
    for number, pair in enumerate(pairs):  # so that captions are no classes, of which no word is ever left out
        pair["caption"] += f" number {number}"
    (shapes.parent / "numbered.json").write_text(json.dumps(pairs))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [*LONGER, "--patch-dropout", "0", "--word-dropout", "0", "--bpe-dropout", "0"]
    data = ["--data-file", str(shapes.parent / "numbered.json")]
    assert clip_train(*data, "--run-dir", str(whole), *flags, cwd=tmp_path).returncode == 0
    shutil.copytree(whole, parts)
    config = RunReader(parts).config()
    for name in ("patch_dropout", "word_dropout", "bpe_dropout"):
        del config["resolved"][name], config["config"]["optim"][name]
    write_json(parts / "config.json", config)
    last = RunReader(parts).pointer("latest")
    assert last is not None
    shutil.rmtree(last)
    assert clip_train("--resume", "--run-dir", str(parts), cwd=tmp_path).returncode == 0
    assert_same_run(whole, parts)


def test_a_run_of_a_preset_that_has_gone_goes_on(shapes: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ["--data-file", str(shapes), *LONGER, "--width", "512"]
    assert clip_train(*flags, "--run-dir", str(whole), cwd=tmp_path).returncode == 0
    shutil.copytree(whole, parts)
    config = RunReader(parts).config()
    config["config"]["model"]["model_size"] = "shallow"
    del config["config"]["model"]["width"]
    write_json(parts / "config.json", config)
    last = RunReader(parts).pointer("latest")
    assert last is not None
    shutil.rmtree(last)
    assert clip_train("--resume", "--run-dir", str(parts), cwd=tmp_path).returncode == 0
    assert_same_run(whole, parts)
