"""The folder of an export: replaced at once, recovered after a kill, and never in place of something else."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clip_core.errors import RunError, UsageError
from clip_core.inference.bundle import find_bundle
from export import output_folder
from export.output_folder import check_output, put_in_place, recover, temporary_folder
from tests.models import environment

# A file system without the exchange of two folders, and a kill between the two renames that it needs.
KILLED_BETWEEN_RENAMES = """
import os, signal, sys
from pathlib import Path
from export import output_folder
output_folder._swap = lambda one, other: False
folder, out = map(Path, sys.argv[1:])
rename = Path.rename
def rename_then_die(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = rename_then_die
output_folder.put_in_place(folder, out)
"""


def export(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(content)
    return folder


def content(folder: Path) -> str:
    return (folder / "manifest.json").read_text()


@pytest.mark.parametrize("swaps", [True, False])
def test_a_new_export_takes_the_place_of_the_old_one(tmp_path: Path, monkeypatch, swaps: bool) -> None:
    if not swaps:
        monkeypatch.setattr(output_folder, "_swap", lambda one, other: False)
    out = tmp_path / "out"
    for version in ("1", "2", "3"):
        with temporary_folder(out) as folder:
            (folder / "manifest.json").write_text(version)
            put_in_place(folder, out)
        assert content(out) == version
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_reader_never_finds_the_place_empty(tmp_path: Path) -> None:
    out = export(tmp_path / "out", "0")
    done, absent = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            if not (out / "manifest.json").exists():
                absent.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(300):
        put_in_place(export(tmp_path / f"new{version}", str(version)), out)
    done.set()
    reader.join()
    assert absent == []
    assert content(out) == "299"


@pytest.mark.fault("SIGKILL after each change of an export's folder")
def test_a_kill_between_two_renames_is_recovered_at_the_next_start(tmp_path: Path) -> None:
    out, new = export(tmp_path / "out", "old"), export(tmp_path / ".out.12.tmp", "new")
    child = subprocess.run(
        [sys.executable, "-c", KILLED_BETWEEN_RENAMES, str(new), str(out)], env=environment(), check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert not out.exists()
    assert content(find_bundle(out)) == "old"  # a reader that comes first
    recover(out)
    assert find_bundle(out) == out
    assert content(out) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_recovery_keeps_the_new_export_and_everything_else(tmp_path: Path) -> None:
    out = export(tmp_path / "out", "new")
    export(tmp_path / ".out.old", "old")
    others = {".out.x.tmp", ".other.12.tmp", ".out.12.tmp.zip"}
    for name in others | {".out.99.tmp"}:
        (tmp_path / name).mkdir()
    recover(out)
    assert content(out) == "new"
    assert {path.name for path in tmp_path.iterdir()} == others | {"out"}


def test_a_block_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    def fail() -> None:
        with temporary_folder(tmp_path / "deep" / "out") as folder:
            (folder / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written to"), temporary_folder(tmp_path / "file" / "out"):
        pass


def test_only_an_export_of_the_same_run_is_replaced_without_force(tmp_path: Path) -> None:
    def check(out: Path, made_from: str | None, *, force: bool = False) -> None:
        check_output(out, what="a bundle", run="a", made_from=lambda folder: made_from, force=force)

    out = tmp_path / "out"
    check(out, None)
    out.mkdir()
    check(out, None)
    (out / "thesis.txt").write_text("years of work")
    check(out, "a")
    check(out, "b", force=True)
    with pytest.raises(UsageError, match="--force"):
        check(out, "b")
    with pytest.raises(UsageError, match="something else than a bundle"):
        check(out, None, force=True)
    (tmp_path / "link").symlink_to(out)
    for path in (tmp_path / "link", out / "thesis.txt"):
        with pytest.raises(UsageError, match="not a folder"):
            check(path, "a", force=True)
