"""What can go wrong while training, done on purpose to the real command."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from clip_core.model.checkpoint import load_model, valid_checkpoints
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from tests.conftest import SHORT_RUN, clip_train, command_environment

ENDLESS = ["--epochs", "5000", *SHORT_RUN[2:], "--checkpoint-every", "1", "--eval-every", "1000000"]


def start(run: Path, data_file: Path, *flags: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "clip_core.cli.train", "--data-file", str(data_file), "--run-dir", str(run), *flags],
        cwd=run.parent,
        env=command_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_until(happened: object, seconds: float = 120) -> None:
    assert callable(happened)
    deadline = time.time() + seconds
    while not happened():
        assert time.time() < deadline, "it did not happen in time"
        time.sleep(0.0005)


def test_killed_while_saving_the_previous_checkpoint_still_loads(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoints = run / "checkpoints"
    for _ in range(3):
        resume = run.exists()
        flags = ["--resume"] if resume else ["--data-file", str(shapes), *ENDLESS]
        child = subprocess.Popen(
            [sys.executable, "-m", "clip_core.cli.train", "--run-dir", str(run), *flags],
            env=command_environment(),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
        )
        before = len(RunReader(run).new_metrics())
        wait_until(lambda before=before: len(RunReader(run).new_metrics()) > before + 3)
        wait_until(lambda: any(checkpoints.glob(".step_*.tmp/model.safetensors")))
        child.kill()
        child.wait()
        step = load_model(run).step
        assert step > 0
        assert valid_checkpoints(run)[0].name == f"step_{step:07d}"


def test_a_second_trainer_on_the_same_directory_is_refused_and_the_first_goes_on(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(run, shapes, *ENDLESS)
    wait_until(lambda: RunReader(run).new_metrics())
    second = clip_train("--resume", "--run-dir", str(run), cwd=tmp_path)
    assert second.returncode == 3
    assert "another trainer is writing" in second.stderr
    assert first.poll() is None
    assert RunReader(run).state() is State.RUNNING
    RunReader(run).ask("stop")
    assert first.wait(60) == 0
    assert RunReader(run).state() is State.STOPPED


def test_pause_checkpoint_evaluate_and_resume_are_served_while_it_trains(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = start(run, shapes, *ENDLESS)
    reader = RunReader(run)
    wait_until(lambda: any(m["kind"] == "train" for m in reader.new_metrics()))
    reader.ask("pause")
    wait_until(lambda: reader.state() is State.PAUSED)
    reader.new_metrics()
    time.sleep(0.5)
    assert not [m for m in reader.new_metrics() if m["kind"] == "train"]
    reader.ask("resume")
    wait_until(lambda: any(m["kind"] == "train" for m in reader.new_metrics()))
    reader.ask("evaluate")
    wait_until(lambda: any(m["kind"] == "eval" for m in reader.new_metrics()))
    reader.ask("stop")
    assert child.wait(60) == 0


def test_a_loss_that_is_not_finite_stops_the_run_and_reaches_no_checkpoint(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = [*ENDLESS, "--lr", "1", "--warmup", "0", "--grad-clip", "1e30", "--weight-decay", "10"]
    done = clip_train("--data-file", str(shapes), "--run-dir", str(run), *flags, cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "not finite at step" in done.stderr
    assert "Traceback" not in done.stderr
    status = RunReader(run).status()
    assert status is not None
    assert status.state is State.FAILED
    assert "not finite" in str(status.error)
    load_model(run)  # refuses weights that are not finite


def test_a_run_is_not_written_over(trained_run: Path, shapes: Path) -> None:
    done = clip_train("--data-file", str(shapes), "--run-dir", str(trained_run), cwd=trained_run.parent)
    assert done.returncode == 1
    assert "already holds a run: add --resume" in done.stderr


def test_resuming_where_the_device_is_missing_says_which_devices_there_are(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    config = json.loads((run / "config.json").read_text())
    config["resolved"]["device"] = "cuda:63"
    (run / "config.json").write_text(json.dumps(config))
    done = clip_train("--resume", "--run-dir", str(run), cwd=tmp_path)
    assert done.returncode == 2
    assert "cuda:63 is not there; this machine has" in done.stderr


def test_resume_takes_no_flag_that_would_change_the_run(trained_run: Path) -> None:
    done = clip_train("--resume", "--run-dir", str(trained_run), "--lr", "0.1", cwd=trained_run.parent)
    assert done.returncode == 2
    assert "leave out --lr" in done.stderr


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ([], 2, "--data-file"),
        (["--data-file", "nowhere.json"], 1, "nowhere.json"),
        (["--data", "."], 1, "no supported format"),
        (["--data", "{1..2}.tar"], 1, "no such file, folder or shard"),
        (["--data", ".", "--class-template", "x"], 2, "--class-template"),
        (["--data-file", "nowhere.json", "--device", "tpu"], 2, "--device"),
        (["--data-file", "nowhere.json", "--patch-size", "7"], 2, "not a multiple"),
        (["--data-file", "nowhere.json", "--batch-size", "1"], 2, "--batch-size"),
        (["--resume"], 2, "--run-dir"),
        (["--resume", "--run-dir", "nowhere"], 1, "nowhere"),
        (["--no-such-flag"], 2, "--no-such-flag"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(flags: list[str], code: int, said: str, tmp_path: Path) -> None:
    done = clip_train(*flags, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_hostile_captions_and_file_names_train_and_reach_no_terminal_as_escapes(tmp_path: Path) -> None:
    nasty = [
        "[red]bold[/red]",
        "\x1b[2J\x1b]0;owned\x07",
        "<|endoftext|> <|startoftext|>",
        "a" * 5000,
        "\u202eright",
        "🟥",
    ]
    pairs = []
    for index in range(24):
        name = f"[b]{index}\x1b[31m {'é' * 20}.png"
        Image.new("RGB", (40, 40), (index * 10, 90, 200 - index * 5)).save(tmp_path / name)
        pairs.append({"image": name, "caption": f"{nasty[index % len(nasty)]} {index}"})
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    flags = ["--data-file", "pairs.json", "--run-dir", "run", *SHORT_RUN, "--batch-size", "4"]
    flags = flags[: flags.index("--batch-size")] + flags[flags.index("--batch-size") + 2 :]
    done = clip_train(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "\x1b" not in (tmp_path / "run" / "train.log").read_text()


def test_bad_images_are_named_and_skipped_and_too_many_refuse_to_start(shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(shapes.parent, folder)
    pairs = json.loads((folder / shapes.name).read_text())
    (folder / pairs[0]["image"]).write_bytes(b"not an image")
    (folder / pairs[1]["image"]).unlink()
    data = ["--data-file", str(folder / shapes.name), "--run-dir", "run", *SHORT_RUN]
    done = clip_train(*data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 180 pairs" in done.stdout
    for pair in pairs[2:40]:
        (folder / pair["image"]).write_bytes(b"\x89PNG\r\n\x1a\n")
    data[3] = "other"
    refused = clip_train(*data, cwd=tmp_path)
    assert refused.returncode == 1
    assert "40 of 180" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_full_disk_fails_the_run_in_words_and_keeps_the_last_checkpoint(shapes: Path, tmp_path: Path) -> None:
    """A file-size limit stands in for the full disk: writing past it fails as a full disk does."""
    import resource

    run = tmp_path / "run"
    flags = ["--data-file", str(shapes), "--run-dir", str(run), *SHORT_RUN]
    assert clip_train(*flags, cwd=tmp_path).returncode == 0
    other = tmp_path / "other"
    flags[3] = str(other)
    limited = subprocess.run(
        [sys.executable, "-m", "clip_core.cli.train", *flags],
        cwd=tmp_path,
        env=command_environment(),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
        check=False,
    )
    assert limited.returncode == 1, limited.stderr
    assert "Traceback" not in limited.stderr
    assert os.strerror(27) in limited.stderr or "checkpoint" in limited.stderr
    assert valid_checkpoints(other) == []
