import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clip_core.errors import RunBusyError
from clip_core.run.reader import BLOCK, RunReader
from clip_core.run.records import State
from clip_core.run.writer import RunWriter
from tests.conftest import command_environment
from tests.run.test_records import PROBE


def lines_of(writer: RunWriter) -> list[dict[str, object]]:
    return [json.loads(line) for line in writer.paths.metrics.read_text("utf-8").splitlines()]


def test_a_second_writer_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    first = RunWriter(tmp_path)
    with pytest.raises(RunBusyError, match="another trainer"):
        RunWriter(tmp_path)
    first.close()
    RunWriter(tmp_path).close()


def test_a_writer_in_another_process_is_refused_until_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time; from clip_core.run.writer import RunWriter; "
        "writer = RunWriter(pathlib.Path(sys.argv[1])); print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, env=command_environment()
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        with pytest.raises(RunBusyError):
            RunWriter(tmp_path)
        child.kill()
    RunWriter(tmp_path).close()


def test_a_status_keeps_what_is_not_changed(writer: RunWriter) -> None:
    writer.status(state=State.RUNNING, step=3)
    writer.heartbeat(step=4)  # too early
    status = RunReader(writer.path).status()
    assert status is not None
    assert (status.state, status.step, status.pid) == (State.RUNNING, 3, os.getpid())
    writer.close()


def test_a_heartbeat_of_a_thread_and_a_status_at_the_same_time_are_both_written(writer: RunWriter) -> None:
    done = threading.Event()
    failures: list[OSError] = []

    def beat() -> None:
        while not done.is_set():
            try:
                writer.status(epoch=1)
            except OSError as error:
                failures.append(error)

    thread = threading.Thread(target=beat)
    thread.start()
    for step in range(100):
        writer.status(step=step)
    done.set()
    thread.join()
    status = RunReader(writer.path).status()
    assert status is not None
    assert (status.step, status.epoch, failures) == (99, 1, [])
    writer.close()


def test_nan_and_infinity_become_null(writer: RunWriter) -> None:
    writer.metric("train", 1, loss=float("nan"), grad_norm=float("inf"))
    line = json.loads(writer.paths.metrics.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (line["loss"], line["grad_norm"]) == (None, None)
    writer.close()


def test_text_that_is_not_utf8_is_written_as_json(writer: RunWriter) -> None:
    message = "emoji 🦊 name\udcff\nline two \x1b[2J"
    writer.event(1, message)
    (line,) = lines_of(writer)
    assert line["message"] == message
    writer.close()


def test_a_best_score_that_is_not_finite_leaves_best_json_readable(writer: RunWriter) -> None:
    writer.point_best("step_0000001", 1, {"mean_recall": 0.5, "val_loss": float("nan")})
    best = RunReader(writer.path).best()
    assert best is not None
    assert (best.metric, best.scores) == ("mean_recall", {"mean_recall": 0.5})
    writer.close()


def test_later_steps_and_a_torn_line_are_dropped(writer: RunWriter) -> None:
    for step in (1, 2, 3):
        writer.metric("train", step, loss=1.0)
        writer.probe(PROBE.model_copy(update={"step": step}))
    writer.event(3, 'a message with "step": 1 in it')
    with writer.paths.metrics.open("a") as handle:
        handle.write('{"step": 1, "kind": "eval", "x": 1}\n{"kind": "eval", "step": 2')
    writer.forget_after(2)
    writer.metric("train", 3, loss=0.5)
    assert [(line["step"], line.get("loss")) for line in lines_of(writer)] == [(1, 1.0), (2, 1.0), (1, None), (3, 0.5)]
    assert [probe.stem for probe in RunReader(writer.path).probes()] == ["0000001", "0000002"]
    writer.close()


def test_nothing_is_rewritten_if_nothing_is_later(writer: RunWriter) -> None:
    writer.metric("train", 1, loss=1.0)
    before = writer.paths.metrics.stat()
    writer.forget_after(1)
    after = writer.paths.metrics.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    writer.close()


def test_a_run_without_metrics_has_nothing_to_drop(writer: RunWriter) -> None:
    writer.forget_after(-1)
    assert not writer.paths.metrics.exists()
    writer.close()


def test_dropping_lines_takes_bounded_memory(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    with writer.paths.metrics.open("wb") as handle:
        for step in range(1, 101):
            handle.write(b'{"kind": "train", "step": %d, "loss": 1.0}\n' % step)
        handle.write(b'{"kind": "train", "step": 50, "x": "' + b"y" * 50 * BLOCK + b'"}\n')
        handle.write(b'{"kind": "train", "step": 101, "loss": 1.0}\n')
    writer.close()
    code = (
        "import pathlib, resource, sys; from clip_core.run.writer import RunWriter; "
        "writer = RunWriter(pathlib.Path(sys.argv[1])); "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "before = peak(); writer.forget_after(90); print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, env=command_environment()
    )
    assert int(done.stdout) < 20 * 1024  # kilobytes; the long line alone has 50 MB
    assert [line["step"] for line in RunReader(tmp_path).all_lines()] == list(range(1, 91))
