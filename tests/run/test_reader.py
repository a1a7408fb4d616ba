import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_core.errors import RunError
from clip_core.files import write_json
from clip_core.run.history import History
from clip_core.run.reader import RunReader, objects
from clip_core.run.records import STALLED_AFTER, Pointer, State, Status
from clip_core.run.requests import Malformed
from clip_core.run.writer import RunWriter
from tests.run.conftest import HOST, run_record


def steps_of(reader: RunReader, limit: int = 2**20) -> list[int]:
    return [row["step"] for row in reader.new_lines(limit).rows]


# ---------------------------------------------------------------- status


def test_a_process_without_heartbeat_has_stalled_and_one_that_is_gone_was_killed(tmp_path: Path) -> None:
    reader = RunReader(tmp_path)
    now = Status(state=State.RUNNING, pid=os.getpid(), host=HOST, heartbeat=time.time())
    assert reader.state(now) is State.RUNNING
    assert reader.state(now.model_copy(update={"heartbeat": time.time() - STALLED_AFTER - 1})) is State.STALLED
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert reader.state(now.model_copy(update={"pid": gone.pid})) is State.KILLED
    assert reader.state(now.model_copy(update={"pid": 0})) is State.KILLED
    assert reader.state(now.model_copy(update={"pid": 10**30})) is State.KILLED
    assert reader.state(now.model_copy(update={"pid": gone.pid, "state": State.FINISHED})) is State.FINISHED


def test_a_run_on_another_host_is_judged_by_its_heartbeat_alone(tmp_path: Path) -> None:
    elsewhere = Status(state=State.RUNNING, pid=2**22 + 1, host="elsewhere", heartbeat=time.time())
    assert RunReader(tmp_path).state(elsewhere) is State.RUNNING


def test_without_a_status_the_lock_says_whether_the_run_is_starting(writer: RunWriter) -> None:
    reader = RunReader(writer.path)
    assert reader.state() is State.STARTING
    writer.close()
    assert reader.state() is State.KILLED


def test_a_status_with_unknown_fields_is_read(writer: RunWriter) -> None:
    write_json(writer.paths.status, {"state": "paused", "step": 7, "nodes": [1, 2]})
    status = RunReader(writer.path).status()
    assert status is not None
    assert (status.state, status.step) == (State.PAUSED, 7)
    writer.close()


# ---------------------------------------------------------------- metrics.jsonl


def test_a_torn_last_line_is_left_until_it_is_complete(writer: RunWriter) -> None:
    reader = RunReader(writer.path)
    writer.metric("train", 1, loss=2.0)
    with writer.paths.metrics.open("a") as handle:
        handle.write('{"kind": "train", "st')
    assert steps_of(reader) == [1]
    assert steps_of(reader) == []
    with writer.paths.metrics.open("a") as handle:
        handle.write('ep": 2}\n')
    assert steps_of(reader) == [2]
    writer.close()


def test_damaged_lines_are_skipped() -> None:
    good = b'{"kind": "eval", "step": 3}'
    damaged = [b"\xff\xfe", b"[1]", b"null", b"", b"{half", good + b"}", good + good, b"[" * 100_000, b"9" * 10_000]
    for line in damaged:
        assert objects(good + b"\n" + line + b"\n  " + good + b"\r\n") == [{"kind": "eval", "step": 3}] * 2


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 200), max_size=20), limit=st.integers(80, 300))
def test_every_line_is_returned_once_whatever_the_block_size(
    sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.mktemp("run")
    lines = [b'{"step": %d, "x": "%s"}\n' % (number, b"y" * size) for number, size in enumerate(sizes)]
    (run / "metrics.jsonl").write_bytes(b"".join(lines))
    reader, found, more = RunReader(run), [], True
    while more:
        rows, restarted, more = reader.new_lines(limit)
        assert not restarted
        found += [row["step"] for row in rows]
    assert set(found) >= {number for number, line in enumerate(lines) if len(line) <= limit / 2}
    assert found == sorted(set(found))
    assert {number for number in range(len(lines)) if len(lines[number]) > limit}.isdisjoint(found)
    assert steps_of(reader) == []


def test_a_line_of_50_mb_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / "metrics.jsonl").open("wb") as handle:
        handle.write(b'{"kind": "train", "step": 1}\n{"kind": "train", "step": 2, "x": "')
        for _ in range(50):
            handle.write(b"y" * 10**6)
        handle.write(b'"}\n{"kind": "train", "step": 3}\n')
    code = (
        "import pathlib, resource, sys; from clip_core.run.history import History; "
        "from clip_core.run.reader import RunReader; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak(); "
        "history = History(RunReader(pathlib.Path(sys.argv[1]))); history.refresh(); "
        "print(peak() - before, history.last['train']['step'])"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": root},
    )  # fmt: skip
    kilobytes, step = map(int, done.stdout.split())
    assert step == 3
    assert kilobytes < 30 * 1024


def test_another_file_of_the_same_name_is_read_from_its_start(writer: RunWriter) -> None:
    reader = RunReader(writer.path)
    for step in (1, 2, 3):
        writer.metric("train", step, loss=1.0)
    assert steps_of(reader) == [1, 2, 3]
    writer.forget_after(1)
    for step in (2, 3, 4, 5):  # longer than it was
        writer.metric("train", step, loss=2.0)
    rows, restarted, more = reader.new_lines()
    assert ([row["step"] for row in rows], restarted, more) == ([1, 2, 3, 4, 5], True, False)
    assert reader.new_lines() == ([], False, False)
    writer.close()


# ---------------------------------------------------------------- hostile files


def in_time(call: Callable[[], object]) -> object:
    """What a call returns, which must not wait for a writer."""
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join(20)
    assert answers, "the call blocks"
    return answers[0]


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except RunError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to itself"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    reader = RunReader(tmp_path)
    paths = reader.paths
    (tmp_path / "checkpoints").mkdir()
    for folder in (paths.requests, paths.probes, paths.bundle):
        folder.mkdir()
    files = [
        paths.config, paths.status, paths.metrics, paths.validation, paths.log, paths.best, paths.latest,
        paths.export_status, paths.bundle_manifest, paths.lock, paths.probe(1), paths.requests / "1.json",
    ]  # fmt: skip
    for path in files:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(path)
    history = History(reader)
    assert in_time(reader.status) is None
    assert in_time(reader.best) is None
    assert in_time(reader.latest) is None
    assert in_time(reader.chosen_checkpoint) is None
    assert in_time(reader.export_status) is None
    assert in_time(reader.bundle_source) is None
    assert in_time(reader.probe) is None
    assert in_time(reader.state) is State.KILLED
    assert in_time(reader.log_tail) == []
    assert in_time(reader.new_lines) == ([], False, False)
    assert in_time(lambda: (history.refresh(), history.complete)[1]) is True
    (request,) = in_time(reader.pending_requests)  # type: ignore[misc]
    assert isinstance(request, Malformed)
    assert "config.json" in str(in_time(lambda: error_of(reader.record)))
    assert "validation.json" in str(in_time(lambda: error_of(reader.validation_pairs)))


def test_a_pointer_out_of_the_run_is_not_followed(writer: RunWriter) -> None:
    outside = writer.path.parent / "outside"
    outside.mkdir()
    (outside / "meta.json").write_text("{}")
    Pointer(checkpoint="../../outside", step=1).write(writer.paths.best)
    assert RunReader(writer.path).chosen_checkpoint() is None
    writer.close()


def test_the_best_checkpoint_is_chosen_then_the_latest(writer: RunWriter) -> None:
    reader = RunReader(writer.path)
    for step in (1, 2):
        writer.paths.checkpoint(step).mkdir()
        (writer.paths.checkpoint(step) / "meta.json").write_text("{}")
    writer.point_latest("step_0000002", 2)
    assert reader.chosen_checkpoint() == writer.paths.checkpoint(2)
    writer.point_best("step_0000001", 1, {"mean_recall": 0.5})
    assert reader.chosen_checkpoint() == writer.paths.checkpoint(1)
    writer.close()


def test_a_bundle_of_another_checkpoint_than_the_best_is_named(writer: RunWriter) -> None:
    reader = RunReader(writer.path)
    assert reader.stale_bundle() is None
    writer.paths.bundle.mkdir()
    write_json(writer.paths.bundle_manifest, {"source": {"checkpoint": "step_0001020", "step": 1020}})
    writer.point_best("step_0001020", 1020, {})
    assert reader.stale_bundle() is None
    writer.point_best("step_0001374", 1374, {})
    assert reader.stale_bundle() == "bundle of step 1020, best checkpoint is step 1374"
    writer.close()


def test_the_configuration_is_read_as_written(writer: RunWriter) -> None:
    run_record().write(writer.paths.config)
    assert RunReader(writer.path).record() == run_record()
    writer.close()


def test_the_tail_of_a_long_log_is_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("".join(f"step {n}\n" for n in range(100_000)))
    assert RunReader(tmp_path).log_tail(3) == ["step 99997", "step 99998", "step 99999"]
