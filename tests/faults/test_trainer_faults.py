"""What can go wrong while training, done on purpose to the real command."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from clip_core.model.checkpoint import load_model, read_meta, valid_checkpoints
from clip_core.run.paths import find_runs
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from tests.conftest import SHORT_RUN, clip_train, command_environment
from tests.running import Child, acknowledgement, answer, lines, start, wait_for_step, wait_until

ENDLESS = ["--epochs", "5000", *SHORT_RUN[2:], "--checkpoint-every", "1", "--eval-every", "1000000"]


def endless(run: Path, data_file: Path, *flags: str) -> Child:
    return start("--data-file", str(data_file), "--run-dir", str(run), *ENDLESS, *flags, cwd=run.parent)


def test_a_second_trainer_on_the_same_directory_is_refused_and_the_first_goes_on(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = endless(run, shapes)
    wait_for_step(run, 1, first)
    second = clip_train("--resume", "--run-dir", str(run), cwd=tmp_path)
    assert second.returncode == 3
    assert "another trainer is writing" in second.stderr
    assert first.poll() is None
    assert RunReader(run).state() is State.RUNNING
    RunReader(run).ask("stop")
    assert first.wait(60) == 0
    assert RunReader(run).state() is State.STOPPED


def test_every_request_is_served_in_order_while_it_trains(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = endless(run, shapes, "--keep-checkpoints", "1")
    wait_for_step(run, 2, child)
    reader = RunReader(run)
    two = [reader.ask("checkpoint").id, reader.ask("evaluate").id]  # within one step, most likely
    saved, evaluated = (acknowledgement(run, request, child) for request in two)
    assert saved["outcome"] == evaluated["outcome"] == "done"
    name = f"step_{saved['step']:07d}"
    assert saved["message"] == f"checkpoint {name} saved and kept"
    assert evaluated["step"] in {line["step"] for line in lines(run, "eval")}
    wait_for_step(run, evaluated["step"] + 5, child)  # automatic checkpoints come and go
    assert read_meta(run / "checkpoints" / name)["kept"] is True
    assert len(valid_checkpoints(run)) < 5
    refused = answer(run, "resume", child)
    assert (refused["outcome"], refused["message"]) == ("refused", "the run is not paused")
    assert answer(run, "stop", child)["outcome"] == "done"
    assert child.wait(60) == 0
    assert RunReader(run).state() is State.STOPPED
    assert RunReader(run).pending_requests() == []


def test_a_paused_run_evaluates_and_saves_at_once_and_goes_on(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = endless(run, shapes)
    wait_for_step(run, 2, child)
    assert answer(run, "pause", child)["outcome"] == "done"
    wait_until(lambda: RunReader(run).state() is State.PAUSED, child)
    (run / "requests" / "x.json").write_text('{"request": "dance"}')
    evaluations = len(lines(run, "eval"))
    assert answer(run, "evaluate", child)["outcome"] == "done"
    assert len(lines(run, "eval")) == evaluations + 1
    assert "saved and kept" in answer(run, "checkpoint", child)["message"]
    assert answer(run, "pause", child)["outcome"] == "refused"
    status = RunReader(run).status()
    assert status is not None
    assert status.state is State.PAUSED
    assert status.train_seconds > 0
    last = max(line["step"] for line in lines(run, "train"))
    assert answer(run, "resume", child)["outcome"] == "done"
    wait_for_step(run, last + 3, child)
    assert [line["outcome"] for line in lines(run, "event") if line.get("asked", "") is None] == ["invalid"]
    assert [line["pace"] for line in lines(run, "event") if "pace" in line] == ["restart"]
    child.terminate()
    assert child.wait(60) == 128 + signal.SIGTERM


def test_requests_before_the_start_expire(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    request = RunReader(run).ask("stop")
    assert clip_train("--resume", "--run-dir", "run", cwd=tmp_path).returncode == 0
    (answered,) = (line for line in lines(run, "event") if line.get("request") == request.id)
    assert (answered["outcome"], answered["message"]) == ("expired", "requested before this trainer started")


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "stop"])
def test_while_images_are_decoded_the_run_can_be_stopped_and_says_how_many_are_kept(
    how: str, large_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "run"
    child = start("--data", str(large_images), "--run-dir", "run", "--workers", "1", cwd=tmp_path, out=subprocess.PIPE)
    assert child.stdout is not None
    decoded = (tmp_path / "cache" / "clip-tui" / "images").glob
    wait_until(lambda: any(file.stat().st_size > 1_000_000 for file in decoded("*.tmp")), child)  # some are decoded
    if how == "stop":
        assert answer(run, "stop", child)["message"] == "stopping"
    else:
        child.send_signal(getattr(signal, how))
    out, err = child.communicate(timeout=60)
    assert child.returncode == {"SIGINT": 130, "SIGTERM": 143, "stop": 0}[how], out + err
    assert "Traceback" not in err
    said = "stopped by request" if how == "stop" else "interrupted"
    for place in (out + err, (run / "train.log").read_text()):
        (count,) = re.findall(rf"^{said}: (\d+) of 400 images decoded and kept$", place, re.MULTILINE)
        assert 0 < int(count) < 400
    assert any(decoded("*.part.npy"))
    status = RunReader(run).status()
    assert status is not None
    assert status.state is State.STOPPED
    again = clip_train("--resume", "--run-dir", "run", cwd=tmp_path)
    assert "ended before its first step; start it again without --resume" in again.stderr


@pytest.fixture(scope="module")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list whose decoding takes much longer than it takes to stop it."""
    folder = tmp_path_factory.mktemp("large")
    Image.effect_noise((3000, 3000), 50).convert("RGB").save(folder / "image.jpg")
    pairs = []
    for number in range(400):
        (folder / f"{number}.jpg").hardlink_to(folder / "image.jpg")
        pairs.append({"image": f"{number}.jpg", "caption": f"caption {number}"})
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return folder / "pairs.json"


def test_a_run_that_fails_before_its_first_step_is_listed_with_its_error_and_can_be_started_again(
    tmp_path: Path,
) -> None:
    pairs = [{"image": f"{number}.png", "caption": f"caption {number}"} for number in range(30)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    flags = ["--data", "pairs.json", "--run-dir", "run", *SHORT_RUN]
    done = clip_train(*flags, cwd=tmp_path)
    assert done.returncode == 1
    sentence = done.stderr.removeprefix("clip-train: ").strip()
    assert "0.png" in sentence
    assert sentence not in done.stdout
    assert (tmp_path / "run" / "train.log").read_text().count(sentence) == 1
    status = RunReader(tmp_path / "run").status()
    assert status is not None
    assert (status.state, status.error) == (State.FAILED, sentence)
    assert find_runs(tmp_path) == [tmp_path / "run"]
    resumed = clip_train("--resume", "--run-dir", "run", cwd=tmp_path)
    assert resumed.returncode == 1
    assert "start it again without --resume" in resumed.stderr
    for number in range(30):
        Image.new("RGB", (32, 32), (number * 8, 90, 10)).save(tmp_path / f"{number}.png")
    assert clip_train(*flags[:4], "--epochs", "1", *SHORT_RUN[4:], cwd=tmp_path).returncode == 0


def test_a_mistake_found_before_the_start_is_recorded_for_the_interface_that_started_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with (run / "train.log").open("ab") as log:
        child = start("--data", "nowhere.json", "--run-dir", "run", cwd=tmp_path, out=log.fileno(), err=log.fileno())
        assert child.wait(60) == 1
    status = RunReader(run).status()
    assert status is not None
    assert status.state is State.FAILED
    assert status.error == "--data nowhere.json: no such file, folder or shard."
    assert (run / "train.log").read_text() == f"clip-train: {status.error}\n"


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_very_few_pairs_train_or_are_refused_in_one_sentence(loss: str, tmp_path: Path) -> None:
    for number in range(24):
        Image.new("RGB", (32, 32), (number * 10, 90, 10)).save(tmp_path / f"{number}.png")

    def train(name: str, count: int, *flags: str, caption: str = "number {}") -> subprocess.CompletedProcess[str]:
        pairs = [{"image": f"{n}.png", "caption": caption.format(n)} for n in range(count)]
        (tmp_path / f"{name}.json").write_text(json.dumps(pairs))
        run = ["--run-dir", name, "--data", f"{name}.json", "--loss", loss, "--epochs", "1"]
        return clip_train(*run, *SHORT_RUN[4:], *flags, cwd=tmp_path)

    for name, count, said in (("one", 1, "--val-file"), ("two", 2, "needs at least 2 training pairs, and there is 1")):
        refused = train(name, count)
        assert (refused.returncode, said in refused.stderr) == (1, True), refused.stderr
    assert train("three", 3).returncode == 0
    assert clip_train("--resume", "--run-dir", "three", cwd=tmp_path).returncode == 0
    refused = train("same", 24, caption="a photo")
    assert "all 22 training pairs have the same caption" in refused.stderr
    assert "needs at least 2 training pairs" in train("one", 1, "--val-file", "three.json").stderr


@pytest.mark.fault("NaN in loss or gradient")
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
    said = re.search(r"not finite at step (\d+) .*, of the images (\S+), .* and \d+ more", str(status.error))
    assert said is not None, status.error
    log = (run / "train.log").read_text()
    assert f"\nthe images of step {said[1]}: {said[2]}, " in log
    load_model(run)  # refuses weights that are not finite


def test_a_run_is_not_written_over(trained_run: Path, shapes: Path) -> None:
    done = clip_train("--data-file", str(shapes), "--run-dir", str(trained_run), cwd=trained_run.parent)
    assert done.returncode == 1
    assert "already holds a run: add --resume" in done.stderr


@pytest.mark.fault("pipe or socket in place of a file")
def test_a_fifo_in_place_of_config_json_is_named_and_the_run_is_not_written_over(
    trained_run: Path, shapes: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")
    done = clip_train("--resume", "--run-dir", str(run), cwd=tmp_path)
    assert (done.returncode, "config.json is a FIFO, and only a regular file is read" in done.stderr) == (1, True)
    done = clip_train("--data-file", str(shapes), "--run-dir", str(run), *SHORT_RUN, cwd=tmp_path)
    assert (done.returncode, "already holds a run" in done.stderr) == (1, True)


def test_resuming_where_the_device_is_missing_says_which_devices_there_are(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    record = RunReader(run).record()
    resolved = record.resolved.model_copy(update={"device": "cuda:63"})
    record.model_copy(update={"resolved": resolved}).write(run / "config.json")
    done = clip_train("--resume", "--run-dir", str(run), cwd=tmp_path)
    assert done.returncode == 2
    assert "cuda:63 is not available; this machine has" in done.stderr


def test_resume_takes_no_flag_that_would_change_the_run(trained_run: Path) -> None:
    done = clip_train("--resume", "--run-dir", str(trained_run), "--lr", "0.1", cwd=trained_run.parent)
    assert done.returncode == 2
    assert "leave out --lr." in done.stderr


def test_resume_with_more_epochs_names_the_way_to_train_longer(trained_run: Path) -> None:
    done = clip_train("--resume", "--run-dir", str(trained_run), "--epochs", "300", cwd=trained_run.parent)
    assert done.returncode == 2
    data = RunReader(trained_run).record().config.data.data_file
    assert f"in a new run: --init {trained_run} --data {data} --epochs 300." in done.stderr
    done = clip_train("--resume", "--epochs", "300", cwd=trained_run.parent)
    assert "add --run-dir RUN, or train on from its weights in a new run: --init RUN" in done.stderr


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ([], 2, "give --data PATH"),
        (["--data-file", "nowhere.json"], 1, "nowhere.json"),
        (["--data", "."], 1, "empty folder"),
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


@pytest.mark.fault("bad images")
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


@pytest.mark.fault("full disk, file-size limit or read-only disk")
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


@pytest.mark.fault("bad images")
def test_two_hundred_bad_images_are_counted_and_the_others_are_trained_on(
    shapes: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(shapes.parent, folder)
    pairs = json.loads((folder / shapes.name).read_text())
    good = (folder / pairs[0]["image"]).read_bytes()
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\2\0\0\0"  # of 65,536 x 65,536 pixels
    kinds = [
        b"",
        b"not an image",
        good[: len(good) // 2],
        bytes(5000),
        bomb,
        b"<html>",
        b"\xff\xd8\xff\xe0" + b"x" * 99,
    ]
    for number in range(200):
        name = f"bad{number}.png"
        if number % 20 == 0:
            os.mkfifo(folder / name)
        elif number % 20 != 1:  # else there is none
            (folder / name).write_bytes(kinds[number % len(kinds)])
        pairs.append({"image": name, "caption": f"bad {number}"})
    (folder / "list.json").write_text(json.dumps(pairs))
    flags = ["--data", str(folder / "list.json"), "--run-dir", "run", "--max-bad-share", "0.9", *SHORT_RUN]
    done = clip_train(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "200 of 380 pairs" in done.stdout
    assert "162 training pairs" in done.stdout
    record_property("injected", 200)
