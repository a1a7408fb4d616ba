import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip_core.errors import RunBusyError, RunError
from clip_core.files import replacing, write_json
from clip_core.run.paths import find_runs
from clip_core.run.reader import RunReader
from clip_core.run.records import STALLED_AFTER, State
from clip_core.run.requests import REQUESTS, Request
from clip_core.run.writer import RunWriter
from tests.conftest import command_environment


def test_a_second_writer_is_refused_and_welcome_once_the_first_is_gone(tmp_path: Path) -> None:
    first = RunWriter(tmp_path)
    with pytest.raises(RunBusyError, match="another trainer"):
        RunWriter(tmp_path)
    first.close()
    RunWriter(tmp_path).close()


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time; from clip_core.run_dir import RunWriter; "
        "writer = RunWriter(pathlib.Path(sys.argv[1])); print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=command_environment()
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    with pytest.raises(RunBusyError):
        RunWriter(tmp_path)
    child.kill()
    child.wait()
    RunWriter(tmp_path).close()


def test_a_torn_last_line_is_left_until_it_is_whole(tmp_path: Path) -> None:
    writer, reader = RunWriter(tmp_path), RunReader(tmp_path)
    writer.metric("train", 1, loss=2.0)
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"kind": "train", "st')
    assert [m["step"] for m in reader.new_metrics()] == [1]
    assert reader.new_metrics() == []
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('ep": 2}\n')
    assert [m["step"] for m in reader.new_metrics()] == [2]
    writer.close()


def test_garbage_lines_in_metrics_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'\xff\xfe\n[1]\nnull\n{"kind": "eval", "step": 3}\n')
    assert [m["step"] for m in RunReader(tmp_path).new_metrics()] == [3]


def test_forgetting_later_steps_keeps_steps_unique_and_drops_a_torn_line(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    for step in (1, 2, 3):
        writer.metric("train", step, loss=1.0)
        writer.probe(step, {"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"torn')
    writer.close()
    again = RunWriter(tmp_path)
    again.forget_after(2)
    again.metric("train", 3, loss=0.5)
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(m["step"], m["loss"]) for m in lines] == [(1, 1.0), (2, 1.0), (3, 0.5)]
    assert [p.stem for p in RunReader(tmp_path).probes()] == ["0000001", "0000002"]


def test_not_a_number_becomes_null_so_that_any_json_reader_takes_it(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.metric("train", 1, loss=float("nan"), grad_norm=float("inf"))
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert line["loss"] is None
    assert line["grad_norm"] is None
    writer.close()


@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_request_is_served_once(tmp_path: Path, request_name: Request) -> None:
    writer, reader = RunWriter(tmp_path), RunReader(tmp_path)
    assert writer.request() is None
    reader.ask(request_name)
    assert writer.request() == request_name
    assert writer.request() is None
    reader.ask(request_name)
    assert writer.request() == request_name
    writer.close()


def test_a_request_from_before_the_trainer_started_or_an_unknown_one_is_not_served(tmp_path: Path) -> None:
    RunReader(tmp_path).ask("stop")
    writer = RunWriter(tmp_path)
    assert writer.request() is None
    write_json(tmp_path / "control.json", {"request": "rm -rf", "id": 7})
    assert writer.request() is None
    (tmp_path / "control.json").write_text("{half")
    assert writer.request() is None
    writer.close()


def test_running_stalled_and_dead_are_told_apart(tmp_path: Path) -> None:
    writer, reader = RunWriter(tmp_path), RunReader(tmp_path)
    writer.status(state=State.RUNNING)
    assert reader.state() is State.RUNNING
    values = json.loads((tmp_path / "status.json").read_text())
    write_json(tmp_path / "status.json", values | {"heartbeat": time.time() - STALLED_AFTER - 1})
    assert reader.state() is State.STALLED
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_json(tmp_path / "status.json", values | {"pid": gone.pid})
    assert reader.state() is State.KILLED
    write_json(tmp_path / "status.json", values | {"pid": gone.pid, "state": "finished"})
    assert reader.state() is State.FINISHED
    writer.close()


def test_a_run_on_another_host_is_judged_by_its_heartbeat_alone(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.status(state=State.RUNNING, host="elsewhere", pid=2**22 + 1)
    assert RunReader(tmp_path).state() is State.RUNNING
    writer.close()


def test_a_folder_without_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        RunReader(tmp_path).config()
    assert find_runs(tmp_path) == []


def test_runs_are_found_below_a_folder_latest_first(tmp_path: Path) -> None:
    for age, name in ((100, "a"), (50, "deep/b")):
        writer = RunWriter(tmp_path / name)
        writer.write_config({})
        writer.status()
        writer.close()
        os.utime(tmp_path / name / "status.json", (time.time() - age,) * 2)
    assert [r.name for r in find_runs(tmp_path)] == ["b", "a"]


def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_json(path, {"old": 1})

    def fail_half_way() -> None:
        with replacing(path) as beside:
            beside.write_text("half")
            tmp_path.write_text("a folder is no file")

    with pytest.raises(IsADirectoryError):
        fail_half_way()
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]
