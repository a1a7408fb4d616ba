"""The command clip-tui: mistakes are one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import command_environment


def clip_tui(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clip_tui.cli", *arguments],
        cwd=cwd, env=command_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["--no-such-flag"], ["a", "b", "c"], ["demo", "--dir"]])
def test_a_mistake_on_the_command_line_is_one_sentence(arguments: list[str], tmp_path: Path) -> None:
    done = clip_tui(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("clip-tui: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = clip_tui("nosuch", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "clip-tui: nosuch does not exist; name a directory of runs, or one run.\n"


def test_a_file_is_no_directory_of_runs(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text("[]")
    done = clip_tui("pairs.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("clip-tui: pairs.json is a file;")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.json"]


def test_without_a_terminal_it_says_so_instead_of_drawing_where_nobody_sees_it(tmp_path: Path) -> None:
    done = clip_tui(".", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "clip-tui: input or error output is no terminal; run it in one, without < and 2>.\n"
