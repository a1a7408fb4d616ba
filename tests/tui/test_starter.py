"""Trainers and exports as processes of their own."""

import os
from pathlib import Path

import pytest

from clip_core.errors import RunError
from clip_core.run.lock import Lock
from clip_core.run.paths import RunPaths
from clip_core.run.records import State, Status
from clip_tui.form import read_form
from clip_tui.starter import _start, is_exporting, start_bench, start_export, start_trainer, to_flags


def test_flags_say_only_what_differs_from_the_default() -> None:
    values = {"data-create_synthetic": True, "optim-augment": False, "optim-lr": "1e-3", "run-seed": "0"}
    assert to_flags(read_form(values)) == ["--create-synthetic", "--lr", "0.001", "--no-augment"]


def test_the_flags_of_a_form_are_understood_by_clip_train() -> None:
    from clip_core.cli.train_command import app, from_flags

    typed = {"data-data_file": __file__, "data-bad_pairs": "refuse", "optim-augment": False, "model-layers": "2",
             "optim-epochs": "3", "data-tokenizer": "bpe", "run-precision": "fp32"}  # fmt: skip
    config = read_form(typed)
    _, bound, _ = app.parse_args(to_flags(config), exit_on_error=False, print_error=False)
    assert from_flags(bound.kwargs) == config


def test_what_is_started_has_a_session_of_its_own_and_writes_to_the_log(tmp_path: Path) -> None:
    process = _start("clip_core.cli.train", ["--list-models"], tmp_path / "run" / "train.log")
    assert os.getsid(process.pid) == process.pid
    assert process.wait(180) == 0
    assert "tiny" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.parametrize("sign", ["lock", "status"])
def test_a_second_export_is_refused_and_leaves_the_log_of_the_first(tmp_path: Path, sign: str) -> None:
    paths = RunPaths(tmp_path)
    paths.export_log.write_text("converting the image encoder\n")
    lock = Lock(paths.export_lock, RunError("busy")) if sign == "lock" else None
    if sign == "status":
        Status(state=State.RUNNING, pid=os.getpid(), host=os.uname().nodename, heartbeat=2e9).write(paths.export_status)
    assert is_exporting(tmp_path)
    with pytest.raises(RunError, match="is being exported already"):
        start_export(tmp_path)
    assert paths.export_log.read_text() == "converting the image encoder\n"
    if lock:
        lock.close()
        assert not is_exporting(tmp_path)


def test_of_two_starts_one_after_the_other_the_second_is_refused(tmp_path: Path) -> None:
    process = start_export(tmp_path)
    with pytest.raises(RunError, match="is being exported already"):
        start_export(tmp_path)
    assert process.wait(300) != 0, "there is no run to export"
    assert not is_exporting(tmp_path)
    assert RunPaths(tmp_path).export_log.read_text().startswith("clip-export: ")


def test_an_export_that_was_killed_does_not_block_the_next_one(tmp_path: Path) -> None:
    dead = 2**22 + 1  # a pid that no process has
    status = Status(state=State.RUNNING, pid=dead, host=os.uname().nodename, heartbeat=2e9)
    status.write(RunPaths(tmp_path).export_status)
    assert not is_exporting(tmp_path)


def test_nothing_is_started_on_a_run_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for start in (start_export, start_bench, lambda run: start_trainer(run, [], resume=True)):
        with pytest.raises(RunError, match="was deleted or moved"):
            start(gone)
    assert not gone.exists(), "it would be listed again, empty"
