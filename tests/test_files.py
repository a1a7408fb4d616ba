"""What a process that was killed while it replaced a file leaves, and files that are not regular."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from clip_core.files import append_regular, remove_unfinished, scratch_folder, write_json
from clip_core.run.reader import RunReader
from clip_core.run.writer import RunWriter
from tests.conftest import command_environment
from tests.run.test_reader import in_time

KILLED_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from clip_core.files import write_json
Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
write_json(Path(sys.argv[1]), {"new": 1})
"""


def killed_writing(path: Path) -> str:
    """The name of what a writer leaves that is killed before its rename."""
    before = set(path.parent.iterdir())
    child = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_RENAME, str(path)], env=command_environment(), check=False
    )
    assert child.returncode == -signal.SIGKILL
    (left,) = set(path.parent.iterdir()) - before
    assert left.name.startswith(f".{path.name}.")
    return left.name


@pytest.mark.fault("SIGKILL of a process that writes a file or a scratch folder")
def test_the_next_writer_of_a_file_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    path.write_text("{}")
    killed_writing(path)
    assert path.read_text() == "{}"
    other = killed_writing(tmp_path / "other.json")
    write_json(path, {"new": 2})
    assert {entry.name for entry in tmp_path.iterdir()} == {"latest.json", other}


def test_what_a_living_process_writes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    kept = {f".a.json.{os.getpid()}.tmp", ".a.json.1.tmp", ".a.json.x.tmp", "a.json.99999999.tmp", ".99999999.tmp"}
    for name in kept:
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.99999999.tmp").mkdir()
    (tmp_path / ".a.json.99999999.tmp").write_text("")
    (tmp_path / f".a.json.{10**30}.tmp").write_text("")
    remove_unfinished(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == kept | {".folder.99999999.tmp"}


@pytest.mark.fault("SIGKILL of a process that writes a file or a scratch folder")
def test_a_scratch_folder_goes_with_its_process_or_at_the_next_start(tmp_path: Path) -> None:
    killed = """
import os, signal, sys
from pathlib import Path
from clip_core.files import scratch_folder
with scratch_folder("test", Path(sys.argv[1])) as folder:
    (folder / "file").write_text("")
    os.utime(folder, (1, 1))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", killed, str(tmp_path)], env=command_environment(), check=False)
    (left,) = tmp_path.iterdir()
    others = {"clip-test-", "clip-other-abcdefgh", "clip-test-abcdefghi"}
    for name in others:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1, 1))
    with scratch_folder("test", tmp_path) as living:
        os.utime(living, (1, 1))
        with scratch_folder("test", tmp_path) as second:
            assert {path.name for path in tmp_path.iterdir()} == others | {living.name, second.name}
    assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == others


@pytest.mark.fault("SIGKILL of a process that writes a file or a scratch folder")
def test_a_trainer_that_starts_removes_what_killed_writers_left(tmp_path: Path) -> None:
    RunWriter(tmp_path).close()
    for name in ("latest.json", "flags.json", "probes/0000001.json", "requests/1.json"):
        killed_writing(tmp_path / name)
    RunWriter(tmp_path).close()
    assert not list(tmp_path.rglob(".*.tmp"))


def refusal(write: Callable[[], None]) -> str:
    with pytest.raises(OSError, match="metrics") as error:
        write()
    return str(error.value)


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.fault("pipe or socket in place of a file")
def test_a_fifo_in_place_of_a_file_that_grows_is_refused_at_once(read: bool, tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    os.mkfifo(writer.paths.metrics)
    reader = os.open(writer.paths.metrics, os.O_RDONLY | os.O_NONBLOCK) if read else None
    for write in (lambda: writer.event(1, "hello"), lambda: writer.forget_after(1)):
        assert "it is not a regular file: " in str(in_time(partial(refusal, write)))
    writer.close()
    if reader is not None:
        os.close(reader)


@pytest.mark.fault("pipe or socket in place of a file")
def test_fifos_in_place_of_files_that_are_replaced_are_replaced(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    for path in (writer.paths.status, writer.paths.best, writer.paths.latest):
        os.mkfifo(path)
    writer.status(step=3)
    writer.point_best("step_0000001", 1, {"mean_recall": 0.5})
    writer.point_latest("step_0000001", 1)
    writer.close()
    reader = RunReader(tmp_path)
    assert all((reader.status(), reader.best(), reader.latest()))


def test_a_folder_in_place_of_a_file_that_is_replaced_is_named(tmp_path: Path) -> None:
    (tmp_path / "best.json").mkdir()
    with pytest.raises(OSError, match="directory") as refused:
        write_json(tmp_path / "best.json", {})
    assert refused.value.filename == str(tmp_path / "best.json")
    assert [path.name for path in tmp_path.iterdir()] == ["best.json"]


@pytest.mark.fault("pipe or socket in place of a file")
def test_a_socket_is_no_file_to_append_to_and_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(OSError, match="it is not a regular file"):
            append_regular(Path("s"))
    for _ in range(2):
        with append_regular(Path("f")) as handle:
            handle.write(b"x")
    assert Path("f").read_bytes() == b"xx"
