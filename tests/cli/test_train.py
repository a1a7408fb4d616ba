"""The flags of clip-train, and Ctrl-C from the moment the command starts."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip_core.cli.train_command import app, from_flags
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from tests.conftest import clip_train, command_environment
from tests.running import SMALL, wait_until


def test_every_flag_has_a_help_text_in_the_words_of_the_field(capsys: pytest.CaptureFixture[str]) -> None:
    app(["--help"], result_action="return_value")
    said = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "second validation set, to detect forgetting" in said
    for quaint in ("guard's", "judged", "held out", "moving average", "picture", "what moves", "left out"):
        assert quaint not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--epochs", "1.5"], "--epochs is '1.5'; it should be a whole number."),
        (["--batch-size", "7.9"], "--batch-size is '7.9'; it should be a whole number."),
        (["--run-dir", ""], "--run-dir is ''; it should not be empty."),
        (["--data", ""], "--data is ''; it should not be empty."),
        (["--epochs", "0"], "--epochs is 0; it should be greater than or equal to 1."),
    ],
)
def test_a_value_that_cannot_be_used_as_typed_is_refused_and_leaves_nothing(
    flags: list[str], said: str, tmp_path: Path
) -> None:
    done = clip_train("--create-synthetic", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"clip-train: {said}\n"
    assert list(tmp_path.iterdir()) == []


def test_flags_belong_to_their_sections() -> None:
    config = from_flags({"epochs": 3, "run_dir": "runs/x", "lora": None})
    assert (config.optim.epochs, config.run.run_dir) == (3, Path("runs/x"))


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0])
def test_an_interrupt_at_any_moment_of_the_start_ends_with_130_and_one_line(
    delay: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first line of ours on; Python says which module it has imported."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    said = tmp_path / "said"
    with said.open("w") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "clip_core.cli.train", *SMALL, "--epochs", "5000", "--run-dir", "run"],
            cwd=tmp_path, env=command_environment(), stdout=out, stderr=out,
        )  # fmt: skip
    wait_until(lambda: "clip_core.cli.interrupt" in said.read_text())
    time.sleep(0.01 + delay)
    child.send_signal(signal.SIGINT)
    assert child.wait(120) == 130, said.read_text()[-2000:]
    lines = [line for line in said.read_text().splitlines() if not line.startswith("import time:")]
    assert not [line for line in lines if "Traceback" in line]
    assert "interrupted" in lines[-1] or lines[-1].startswith("stopped at step")
    assert sum("interrupted" in line for line in lines) <= 1
    status = RunReader(tmp_path / "run").status()
    assert status is None or status.state is State.STOPPED
