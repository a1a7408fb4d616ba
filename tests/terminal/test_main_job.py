"""The main job as a person does it, in a real terminal: form, step, detach, attach, stop, export, query, switch."""

import signal
from pathlib import Path

from clip_core.data.synthetic import create_synthetic
from clip_core.flags import flag
from clip_core.run.paths import find_runs
from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_core.run.writer import RunWriter
from tests.conftest import SHORT_RUN, clip_train
from tests.terminal.terminal import Terminal, end, lives, wait_until

ENDLESS = {"epochs": "100000", "batch_size": "32", "log_every": "1"}


def fill_form(terminal: Terminal, values: dict[str, str]) -> None:
    """Find each setting by its flag, and type its value."""
    for name, value in values.items():
        if name != "data_file":  # it has the focus at the beginning
            terminal.press("ctrl+f")
            terminal.type(flag(name))
            terminal.press("enter")
        terminal.wait_for(f"{flag(name)}: ")  # the line below the form describes the field that has the focus
        terminal.type(value)


def start_from_form(terminal: Terminal, data_file: Path) -> None:
    terminal.wait_for("No runs yet")
    terminal.press("n")
    terminal.wait_for("--data-file")
    small = {"image_size": "32", "patch_size": "16", "layers": "1", "device": "cpu"}
    fill_form(terminal, {"data_file": str(data_file), **small, **ENDLESS})
    terminal.press("ctrl+s")
    terminal.wait_for("● running", 90)


def test_the_main_job_from_the_form_to_an_answer_of_both_backends(tmp_path: Path) -> None:
    data_file = tmp_path / "shapes" / "pairs.json"
    create_synthetic(data_file, count=90, seed=0, size=32)
    pid = 0
    try:
        with Terminal("clip_tui.cli", "runs", cwd=tmp_path) as terminal:
            start_from_form(terminal, data_file)
            (run,) = find_runs(tmp_path / "runs")
            reader = RunReader(run)
            status = reader.status()
            assert status is not None
            pid = status.pid
            wait_until(lambda: (reader.status() or status).step > 3)
            terminal.wait_for("train")
            terminal.press("q")
            assert terminal.wait() == 0
        assert lives(pid)
        step = (reader.status() or status).step
        wait_until(lambda: (reader.status() or status).step > step)

        with Terminal("clip_tui.cli", "runs", cwd=tmp_path) as terminal:
            terminal.wait_for("● running")
            terminal.press("enter")
            terminal.wait_for("s Stop")
            terminal.press("s")
            terminal.wait_for("○ stopped")
            assert reader.state() is State.STOPPED

            terminal.press("7")
            terminal.wait_for("No bundle yet")
            terminal.press("e")
            terminal.wait_for("passed against PyTorch", 120)

            terminal.press("4")
            terminal.wait_for("match against 9 images")
            terminal.press("x")
            terminal.wait_for(" ms")
            terminal.wait_for("▀")
            terminal.press("b")
            terminal.wait_for("same order")
            terminal.press("q")
            assert terminal.wait() == 0
    finally:
        if pid:
            end(pid)


def test_closing_the_terminal_changes_nothing_for_the_trainer(tmp_path: Path) -> None:
    data_file = tmp_path / "shapes" / "pairs.json"
    create_synthetic(data_file, count=90, seed=0, size=32)
    pid = 0
    try:
        with Terminal("clip_tui.cli", "runs", cwd=tmp_path) as terminal:
            start_from_form(terminal, data_file)
            (run,) = find_runs(tmp_path / "runs")
            reader = RunReader(run)
            pid = getattr(reader.status(), "pid", 0)
            terminal.hang_up()
            terminal.process.wait(60)
        step = getattr(reader.status(), "step", 0)
        wait_until(lambda: getattr(reader.status(), "step", 0) > step + 2)
        assert reader.state() is State.RUNNING
    finally:
        if pid:
            end(pid)


def test_a_mistake_in_the_form_names_its_flag_and_starts_nothing(tmp_path: Path) -> None:
    with Terminal("clip_tui.cli", "runs", cwd=tmp_path) as terminal:
        terminal.wait_for("No runs yet")
        terminal.press("n")
        terminal.wait_for("--data-file")
        terminal.press("ctrl+s")
        terminal.wait_for("--data-file is missing")
        terminal.press("escape")
        terminal.wait_for("No runs yet")
        terminal.press("q")
        assert terminal.wait() == 0
    assert not (tmp_path / "runs").exists()


def test_a_killed_trainer_is_shown_as_killed_and_resumes_by_one_key(tmp_path: Path) -> None:
    data_file = tmp_path / "shapes" / "pairs.json"
    create_synthetic(data_file, count=90, seed=0, size=32)
    run = tmp_path / "runs" / "short"
    assert clip_train("--data-file", str(data_file), "--run-dir", str(run), *SHORT_RUN, cwd=tmp_path).returncode == 0
    reader = RunReader(run)
    writer = RunWriter(run)
    writer.status(state=State.RUNNING, pid=2**22 + 1, step=5, steps=10)  # a pid that no process has
    writer.close()
    with Terminal("clip_tui.cli", "runs", cwd=tmp_path) as terminal:
        terminal.wait_for("✗ killed (no heartbeat)")
        terminal.press("enter")
        terminal.wait_for("r Resume")
        terminal.press("r")
        wait_until(lambda: reader.state() is State.FINISHED)
        terminal.wait_for("✓ finished")
        terminal.process.send_signal(signal.SIGTERM)
        terminal.process.wait(20)
