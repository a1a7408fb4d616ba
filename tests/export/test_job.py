"""The lock, the status and the log of an export, with real processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_core.errors import ParityError, RunBusyError, UsageError
from clip_core.inference.bundle import read_manifest
from clip_core.run.paths import RunPaths
from clip_core.run.reader import RunReader
from clip_core.run.records import HEARTBEAT_SECONDS, State, Status
from export.cli import main
from export.job import ExportJob, run_of
from tests.models import command, environment, make_run, python


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "export.cli", *map(str, arguments)], env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hidden_folders(run: Path) -> list[str]:
    return [path.name for path in run.iterdir() if path.name.startswith(".") and path.is_dir()]


def test_a_second_export_of_a_run_is_refused_and_the_first_one_keeps_its_log(run: Path) -> None:
    reader, log = RunReader(run), RunPaths(run).export_log
    first = start(run)
    wait_for(lambda: log.exists() and "converting" in log.read_text(), first)
    state, status = reader.export_status() or (None, Status())
    assert state is State.RUNNING
    assert (status.pid, status.step) == (first.pid, 7)
    assert "step_0000007" in (status.message or "")
    second = python("-m", "export.cli", run, "--force")
    assert second.returncode == 3
    assert second.stdout == ""
    assert second.stderr.startswith(f"clip-export: another process (process {first.pid}) is exporting")
    assert second.stderr.count("\n") == 1
    out, _ = first.communicate(timeout=240)
    assert first.returncode == 0
    assert log.read_text() == out
    assert "accepted" in out
    state, status = reader.export_status() or (None, Status())
    assert (state, status.error, status.message, status.step) == (State.FINISHED, None, None, 7)


@pytest.mark.fault("SIGKILL after each change of an export's folder")
def test_a_killed_export_is_seen_as_killed_and_the_next_one_removes_its_folder(run: Path) -> None:
    process = start(run)
    wait_for(lambda: hidden_folders(run), process)
    process.kill()
    process.wait()
    assert hidden_folders(run) == [f".bundle.{process.pid}.tmp"]
    assert (RunReader(run).export_status() or [None])[0] is State.KILLED
    done = command(main, run)
    assert done.returncode == 0, done.stderr
    assert hidden_folders(run) == []
    assert read_manifest(run / "bundle").source.step == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_export_says_so_and_leaves_no_folder(run: Path, number: signal.Signals) -> None:
    process = start(run)
    wait_for(lambda: hidden_folders(run), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert "interrupted" in str(said)
    assert process.returncode == 128 + number
    assert (RunReader(run).export_status() or [None])[0] is State.STOPPED
    assert hidden_folders(run) == []
    assert not RunPaths(run).bundle.exists()


def test_the_log_is_written_once_where_stdout_is_the_log(run: Path) -> None:
    log = RunPaths(run).export_log
    with log.open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-m", "export.cli", str(run), "--format", "hf"],
            env=environment(), stdout=out, stderr=out, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert log.read_text().count("cannot be written for transformers") == 1


def test_a_failure_is_in_the_status_and_in_the_log(run: Path) -> None:
    def fail() -> None:
        with ExportJob(run, None, "bundle") as job:
            job.now("measuring parity", step=7)
            raise ParityError("they differ by \x1b[31m1.")

    with pytest.raises(ParityError):
        fail()
    state, status = RunReader(run).export_status() or (None, Status())
    assert (state, status.error) == (State.FAILED, "they differ by [31m1.")
    assert RunPaths(run).export_log.read_text() == "measuring parity ...\nclip-export: they differ by [31m1.\n"


def test_the_heartbeat_goes_on_while_the_export_says_nothing(run: Path) -> None:
    with ExportJob(run, None, "bundle") as job:
        job.now("converting", step=7)
        first = Status.read(RunPaths(run).export_status).heartbeat
        deadline = time.monotonic() + 20 * HEARTBEAT_SECONDS
        while Status.read(RunPaths(run).export_status).heartbeat == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert Status.read(RunPaths(run).export_status).state is State.FINISHED


def test_every_format_of_a_run_shares_one_lock_and_other_folders_have_their_own(run: Path, tmp_path: Path) -> None:
    with ExportJob(run, None, "bundle"), ExportJob(run, tmp_path / "elsewhere", "bundle") as elsewhere:
        with pytest.raises(RunBusyError, match="is exporting"), ExportJob(run, None, "hf"):
            pass
        with pytest.raises(RunBusyError, match="is exporting"), ExportJob(run, run / "mine", "bundle"):
            pass
        with pytest.raises(RunBusyError, match="elsewhere"), ExportJob(run, tmp_path / "elsewhere", "hf"):
            pass
        elsewhere.now("converting", step=7)
    assert Status.read(RunPaths(run).export_status).step == 0
    assert [path.name for path in tmp_path.iterdir() if "elsewhere" in path.name] == []
    with ExportJob(run, None, "hf"), ExportJob(run, tmp_path / "elsewhere", "bundle"):
        pass


def test_the_run_of_a_checkpoint_is_found_and_published_weights_have_none(run: Path, tmp_path: Path) -> None:
    assert run_of(run) == run
    assert run_of(run / "checkpoints" / "step_0000007") == run
    assert run_of(run / "checkpoints") is None
    shutil.copytree(run / "checkpoints" / "step_0000007", tmp_path / "alone")
    assert run_of(tmp_path / "alone") is None
    job = ExportJob(tmp_path / "alone", None, "bundle")
    with pytest.raises(UsageError, match="--out"):
        print(job.out)


def test_a_run_that_cannot_be_written_is_one_sentence(run: Path) -> None:
    (run / ".export.lock").mkdir()
    done = command(main, run)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert os.fspath(run) in done.stderr
