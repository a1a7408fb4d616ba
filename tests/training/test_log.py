"""Lines on the terminal and in train.log, also after the terminal was closed; throughput."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip_core.training.log import Log, Pace
from tests.conftest import command_environment
from tests.running import wait_until

SPEAKS = """
import os, sys, time
from pathlib import Path
from clip_core.training.log import Log
log = Log()
log.to_file(Path("train.log"))
log.start_bar(10, 0)
log.say(f"first, interactive: {log.interactive}")
while not Path("closed").exists():
    time.sleep(0.01)
for number in range(3):
    log.advance({"loss": "1.0"})
    log.say(f"line {number}")
log.close()
Path("ended").touch()
"""


def test_lines_are_on_the_terminal_and_in_the_file_with_those_from_before_it_was_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log()
    log.say("early")
    log.to_file(tmp_path / "train.log")
    log.say("late")
    log.record("the command prints this itself")
    log.close()
    assert capsys.readouterr().out == "early\nlate\n"
    assert (tmp_path / "train.log").read_text() == "early\nlate\nthe command prints this itself\n"


def test_escape_sequences_are_written_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    log.to_file(tmp_path / "train.log")
    log.say("a \x1b[2J caption\nof two lines")
    log.record("\x1b]0;title\x07")
    log.close()
    out, written = capsys.readouterr().out, (tmp_path / "train.log").read_text()
    assert "\x1b" not in out + written
    assert "\x07" not in written
    assert (out.count("\n"), written.count("\n")) == (1, 2)


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("of the first trainer\n")
    log = Log()
    log.to_file(tmp_path / "train.log")
    log.say("of the second")
    log.close()
    assert (tmp_path / "train.log").read_text() == "of the first trainer\nof the second\n"


def test_each_line_is_written_once_where_standard_output_is_train_log(tmp_path: Path) -> None:
    """As the interface starts a run."""
    (tmp_path / "closed").touch()
    with (tmp_path / "train.log").open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-c", SPEAKS], cwd=tmp_path, env=command_environment(), stdout=out, stderr=out, check=False
        )
    assert done.returncode == 0
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert lines == ["first, interactive: False", "line 0", "line 1", "line 2"]


@pytest.mark.parametrize("how", ["terminal", "pipe"])
def test_after_the_terminal_was_closed_the_run_goes_on_and_train_log_is_complete(how: str, tmp_path: Path) -> None:
    reading, writing = pty.openpty() if how == "terminal" else os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", SPEAKS], cwd=tmp_path, env=command_environment(), stdout=writing, stderr=writing,
        start_new_session=True,
    )  # fmt: skip
    os.close(writing)
    wait_until(lambda: (tmp_path / "train.log").is_file() and (tmp_path / "train.log").read_text(), child)
    assert os.read(reading, 4096)  # it was open until here
    os.close(reading)
    (tmp_path / "closed").touch()
    assert child.wait(60) == 0
    assert (tmp_path / "ended").exists()
    first = f"first, interactive: {how == 'terminal'}"
    assert (tmp_path / "train.log").read_text().splitlines() == [first, "line 0", "line 1", "line 2"]


def test_time_that_was_not_training_does_not_count() -> None:
    without, whole = Pace(), Pace()
    without.count(100)
    whole.count(100)
    time.sleep(0.2)
    without.skip(0.15)
    assert without.read(0.0)["images_per_second"] > whole.read(0.0)["images_per_second"] > 0


def test_the_data_wait_is_the_fraction_of_the_time_since_the_last_reading() -> None:
    pace = Pace()
    time.sleep(0.1)
    assert 0 < pace.read(0.05)["data_wait"] <= 0.5
    time.sleep(0.01)
    assert pace.read(0.05) == {"images_per_second": 0.0, "data_wait": 0.0}
    assert pace.read(60.0)["data_wait"] == 1.0
