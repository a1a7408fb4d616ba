"""Runs on a stream: stopped and resumed they are the run that was never stopped; processes train what one does."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clip_core.data.formats.detect import read_data
from clip_core.data.stream import source as sources
from clip_core.data.stream.samples import hash64
from clip_core.errors import RunError
from clip_core.inference.evaluation.leaks import trained_on
from clip_core.model.clip import Embeddings
from clip_core.run.reader import RunReader
from clip_core.run.records import FlaggedPair, Flags, State, StreamRecord
from clip_core.training.batches import Batch
from clip_core.training.signals import Signals
from clip_core.training.stream_batches import StreamBatches
from clip_core.training.stream_start import continue_stream
from tests.conftest import clip_train
from tests.running import assert_same_run, figures, latest, lines, start, wait_until
from tests.streams import png, served, shards
from tests.training.conftest import Build, small_config

SIZES = [40, 25, 60, 31, 50]  # 206 pairs
SMALL = [
    "--stream", "--val-pairs", "20", "--epochs", "3", "--batch-size", "16", "--readers", "2", "--shuffle-buffer", "20",
    "--image-size", "16", "--model-size", "nano", "--layers", "1", "--width", "64", "--device", "cpu", "--precision",
    "fp32", "--tokenizer", "char", "--log-every", "1", "--eval-every", "20", "--checkpoint-every", "3",
    "--keep-checkpoints", "100",
]  # fmt: skip
HARD = "--hard-negatives"  # of the run that others are compared with


def changed(**values: str) -> list[str]:
    """`SMALL` with other values."""
    flags = list(SMALL)
    for name, value in values.items():
        flags[flags.index("--" + name) + 1] = value
    return flags


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("shards"), SIZES)


@pytest.fixture(scope="module")
def whole(pattern: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = clip_train("--data", str(pattern), "--run-dir", str(run), HARD, *SMALL, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "hard negatives for 100% of the first 206 captions of the stream" in done.stdout
    assert "about 186 pairs in an epoch (counted); 2 shards read at the same time" in done.stdout
    assert len(RunReader(run).validation_pairs().pairs) == 20
    return run


def test_which_pairs_it_was_trained_on_is_known_by_their_shards(pattern: Path, whole: Path, tmp_path: Path) -> None:
    held = {pair.caption for pair in RunReader(whole).validation_pairs().pairs}
    moved = Path(shutil.copytree(pattern.parent, tmp_path / "moved")) / pattern.name
    for place in (pattern, moved):
        pairs = read_data(place).pairs
        assert len(pairs) == sum(SIZES)
        trained = trained_on(whole, pairs)
        assert trained is not None
        assert {pair.caption for pair, was in zip(pairs, trained, strict=True) if not was} == held
        assert trained.sum() == sum(SIZES) - 20
    others = [pairs[-1]._replace(path=path) for path in (pairs[-1].path.replace(".tar!", "x.tar!"), "cat.png")]
    trained = trained_on(whole, others)
    assert trained is not None
    assert not trained.any()
    assert RunReader(whole).record().data.train_images is None  # which nobody counted


def as_stopped_at(run: Path, copy: Path, step: int) -> Path:
    """The run as it was after a checkpoint."""
    shutil.copytree(run, copy, dirs_exist_ok=True)
    for folder in copy.glob("checkpoints/step_*"):
        if int(folder.name[-7:]) > step:
            shutil.rmtree(folder)
    for name in ("latest.json", "best.json"):
        (copy / name).unlink(missing_ok=True)
    return copy


def test_stopped_in_the_first_and_the_third_epoch_and_moved_it_is_the_same_run(
    pattern: Path, whole: Path, tmp_path: Path
):
    moved = Path(shutil.copytree(pattern.parent, tmp_path / "moved"))
    for step, places in ((3, []), (27, ["--data", str(moved / pattern.name)])):
        copy = as_stopped_at(whole, tmp_path / f"run-{step}", step)
        state = json.loads((copy / f"checkpoints/step_{step:07d}/state.json").read_text())["stream"][0]
        assert max(lane["epoch"] for lane in state["lanes"]) == step // 12
        assert any(lane["cursor"][2] > 0 for lane in state["lanes"])  # in the middle of a shard
        done = clip_train("--resume", "--run-dir", str(copy), *places, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"resuming at step {step}" in done.stdout
        assert_same_run(whole, copy)


def test_two_processes_train_what_one_trains_and_one_resumes_them(pattern: Path, whole: Path, tmp_path: Path):
    run = tmp_path / "two"
    flags = ["--data", str(pattern), HARD, *changed(**{"shuffle-buffer": "10"}), "--devices", "2"]  # 10 in each process
    child = start(*flags, "--run-dir", str(run), cwd=tmp_path, out=subprocess.PIPE)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    keys = ("loss", "grad_norm", "chance", "repeated_captions")
    two, one = ([[line[key] for key in keys] for line in lines(folder, "train")] for folder in (run, whole))
    assert len(two) == len(one) == 33
    for step, (a, b) in enumerate(zip(two, one, strict=True), start=1):
        assert a == pytest.approx(b, rel=2e-3), step
    state = json.loads((latest(run) / "state.json").read_text())["stream"]
    expected = json.loads((latest(whole) / "state.json").read_text())["stream"]
    assert [lane for rank in state for lane in rank["lanes"]] == expected[0]["lanes"]
    copy = as_stopped_at(run, tmp_path / "one", 21)
    done = clip_train("--resume", "--run-dir", str(copy), "--devices", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [f[:2] for f in figures(copy)] == [f[:2] for f in figures(whole)]
    assert json.loads((latest(copy) / "state.json").read_text())["stream"][0]["lanes"] == expected[0]["lanes"]


def test_a_web_server_that_breaks_stalls_and_changes(
    pattern: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "WAITS", (0.01, 0.02))
    run, flags = tmp_path / "web", [HARD, *(flag for flag in SMALL if flag != "--stream")]
    with served(pattern.parent) as server:
        url = f"{server.url}/{pattern.name}"
        server.faults = {"002.tar": ["reset", 503], "001.tar": ["truncate"]}
        done = clip_train("--data", url, "--run-dir", str(run), *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("trying again") == 3
        assert [f[2:] for f in figures(run)] == [f[2:] for f in figures(whole)]  # as from local shards
        images = [Path(pair.image) for pair in RunReader(run).validation_pairs().pairs]
        assert all(image.is_file() and image.parent == run / "validation" for image in images)
        copy = as_stopped_at(run, tmp_path / "copy", 21)
        server.faults, server.lasting = {"002.tar": [404]}, True
        done = clip_train("--resume", "--run-dir", str(copy), cwd=tmp_path)
        assert done.returncode == 1
        assert "002.tar cannot be read (404 Not Found, tried 3 times)" in done.stderr
        server.faults, server.lasting = {}, False
        done = clip_train("--resume", "--run-dir", str(copy), cwd=tmp_path)  # what was read until then is saved
        assert done.returncode == 0, done.stderr
        assert_same_run(run, copy)
        server.faults, server.lasting = {f"{n:03d}.tar": ["stall"] for n in range(5)}, False
        copy = as_stopped_at(run, tmp_path / "again", 21)
        child = start("--resume", "--run-dir", str(copy), cwd=tmp_path, out=subprocess.PIPE)
        wait_until(lambda: any(name in server.faults and not server.faults[name] for name, _ in server.asked), child)
        began = time.time()
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
        assert time.time() - began < 5  # the server would be silent for 60 s; drawing the curves takes one or two
    other = shards(tmp_path / "other", [*SIZES[:-1], 90])
    done = clip_train("--resume", "--run-dir", str(copy), "--data", str(other), cwd=tmp_path)
    assert done.returncode == 1
    assert "has changed since this run read it" in done.stderr
    done = clip_train("--resume", "--run-dir", str(copy), "--data", str(other.parent / "{000..003}.tar"), cwd=tmp_path)
    assert "1 shard missing (first: 004.tar)" in done.stderr


def test_bad_pairs_are_counted_named_and_too_many_stop_the_run(tmp_path: Path):
    pattern = shards(tmp_path / "shards", [60])
    path = tmp_path / "shards" / "000.tar"
    content = path.read_bytes()
    places = [i for i in range(0, len(content), 512) if content[i : i + 8] == b"\x89PNG\r\n\x1a\n"]
    damaged = bytearray(content)
    for place in places[-2:]:
        damaged[place + 8 : place + 40] = b"\0" * 32
    path.write_bytes(damaged)
    flags = ["--data", str(pattern), *changed(epochs="2")]
    done = clip_train(*flags, "--run-dir", str(tmp_path / "run"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bad pair: " in done.stdout
    assert "00059.png" in (tmp_path / "run" / "train.log").read_text()
    assert "pairs read so far are bad" in done.stdout
    record = StreamRecord.read(tmp_path / "run" / "stream.json")
    assert (record.lanes, record.first) == (2, 0)
    done = clip_train(*flags, "--run-dir", str(tmp_path / "few"), "--max-bad-share", "0.01", cwd=tmp_path)
    assert done.returncode == 1
    assert "pairs read so far are bad, more than --max-bad-share 0.01 allows, first" in done.stderr
    status = RunReader(tmp_path / "few").status()
    assert status is not None
    assert status.state is State.FAILED
    done = clip_train(*flags, "--run-dir", str(tmp_path / "none"), "--bad-pairs", "refuse", cwd=tmp_path)
    assert "skip bad pairs with --bad-pairs skip" in done.stderr


def test_a_validation_set_of_other_shards_and_shards_named_val(pattern: Path, tmp_path: Path):
    for number, name in enumerate(("train-0", "train-1", "val-0")):
        shutil.copy(pattern.parent / f"{number:03d}.tar", tmp_path / f"{name}.tar")
    flags = changed(epochs="1")
    del flags[flags.index("--val-pairs") : flags.index("--val-pairs") + 2]
    val = f"{tmp_path}/val-0.tar::{tmp_path}/train-0.tar"
    run = tmp_path / "run"
    done = clip_train("--data", str(tmp_path), "--val-file", val, "--run-dir", str(run), *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 shard named as val or test is not trained on" in done.stdout
    assert "about 65 pairs in an epoch (counted)" in done.stdout
    assert len(RunReader(run).validation_pairs().pairs) == SIZES[2]
    record = StreamRecord.read(run / "stream.json")
    assert (record.shards, record.first, record.offset) == (["train-0.tar", "train-1.tar"], 0, 0)
    done = clip_train("--resume", "--run-dir", str(run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_flagged_pairs_are_left_out_and_on_resume_too_wherever_flags_and_shards_are(pattern: Path, tmp_path: Path):
    moved = Path(shutil.copytree(pattern.parent, tmp_path / "shards"))
    pairs = read_data(moved / pattern.name).pairs
    flagged = [FlaggedPair(image=pair.path, caption=pair.caption) for pair in (pairs[3], *pairs[30:60], pairs[-1])]
    flags, run = tmp_path / "flags.json", tmp_path / "run"
    Flags(pairs=[*flagged, FlaggedPair(image="/other/a.jpg", caption="a")]).write(flags)
    given = ["--data", str(moved / pattern.name), "--leave-out", str(flags), *changed(epochs="2")]
    done = clip_train(*given, "--run-dir", str(run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"32 pairs named by {flags} are left out of the stream; 1 of its flags are of other data" in done.stdout
    assert "about 154 pairs in an epoch (counted)" in done.stdout  # 206 without 32, of which 20 validate
    assert re.search(r"stream: 3\d of \d+ pairs read so far are left out by --leave-out", done.stdout)
    assert pairs[3].caption not in [pair.caption for pair in RunReader(run).validation_pairs().pairs]
    flags.unlink()
    shutil.rmtree(moved)
    copy = as_stopped_at(run, tmp_path / "copy", 3)
    done = clip_train("--resume", "--run-dir", str(copy), "--data", str(pattern), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(run, copy)
    copy = as_stopped_at(run, tmp_path / "changed", 3)
    Flags(pairs=flagged[1:]).write(copy / "left_out.json")
    config = RunReader(copy).record().config
    config = config.model_copy(update={"data": config.data.model_copy(update={"data_file": pattern})})
    with pytest.raises(RunError, match=r"left_out\.json was changed since the run began without its pairs"):
        continue_stream(config, copy, lambda line: None)


def test_what_cannot_be_streamed_is_refused_before_anything_is_written(shapes: Path, pattern: Path, tmp_path: Path):
    for flags, code, why in (
        (["--data", "s3://bucket/{0..9}.tar"], 1, "pip install s3fs"),
        (["--data", str(shapes), "--stream"], 1, "names no shard to stream"),
        (["--data", str(pattern), "--epoch-pairs", "50"], 2, "add --stream"),
        (["--data", str(pattern), *changed(readers="3")], 2, "--readers is 3"),
        (["--data", str(pattern), "--stream", "--leave-out", "x"], 1, "--leave-out x: no such file"),
        (["--data", f"{pattern}::{pattern.parent}/9.tar"], 1, "there is no shard at"),
    ):
        done = clip_train(*flags, "--run-dir", str(tmp_path / "run"), cwd=tmp_path)
        assert (done.returncode, why in done.stderr) == (code, True), done.stderr
        assert not (tmp_path / "run" / "config.json").exists()


def test_a_rollback_goes_on_behind_the_batch_that_led_to_it(build: Build, pattern: Path, tmp_path: Path):
    how = {
        "run": {"on_nan": "rollback", "checkpoint_every": 2, "eval_every": 100},
        "data": {"stream": True, "val_pairs": 20, "shuffle_buffer": 20},
    }
    poison, seen = hash64(png(100)), []
    trainer = build(small_config(pattern, tmp_path / "run", **how))
    loss_of = trainer.train_step.loss_of

    def nan(embeddings: Embeddings, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(batch.image_ids.tolist())
        loss, measured = loss_of(embeddings, batch)
        return loss * (torch.nan if poison in batch.image_ids else 1), measured

    trainer.train_step.loss_of = nan  # type: ignore[method-assign]
    with Signals() as signals:
        assert trainer.train(signals) is State.FINISHED
    assert trainer.progress.rollbacks >= 1
    batches = build(small_config(pattern, tmp_path / "again", **how)).batches
    assert seen == [batches(step).image_ids.tolist() for step in range(len(seen))]  # none twice, none left out
    assert isinstance(batches, StreamBatches)
    batches.close()
