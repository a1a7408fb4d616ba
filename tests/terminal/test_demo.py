"""The demo in a real terminal: the app leads through it by itself, and leaving it ends with the summary."""

from pathlib import Path

from clip_core.run.reader import RunReader
from clip_core.run.records import State
from tests.terminal.terminal import Terminal, wait_until
from tests.tui.test_demo import SMALL


def test_the_demo_trains_exports_and_classifies_by_itself_and_ends_with_the_summary(tmp_path: Path) -> None:
    with Terminal("clip_tui.cli", "demo", "--", *SMALL, cwd=tmp_path, size=(120, 40)) as terminal:
        terminal.wait_for("clip-tui")
        terminal.wait_for("passed against PyTorch", 120)
        terminal.wait_for(" ms", 60)
        assert "5 Classify" in terminal.text
        terminal.press("q")
        assert terminal.wait(60) == 0
        terminal.wait_for("next:")
        assert "infer classification --model demo/runs/demo/bundle" in terminal.text
    assert RunReader(tmp_path / "demo" / "runs" / "demo").state() is State.FINISHED


def test_leaving_the_demo_returns_at_once_says_how_to_attach_and_training_goes_on(tmp_path: Path) -> None:
    endless = [*SMALL, "--epochs", "100000"]
    reader = RunReader(tmp_path / "demo" / "runs" / "demo")
    with Terminal("clip_tui.cli", "demo", "--", *endless, cwd=tmp_path, size=(120, 40)) as terminal:
        terminal.wait_for("● running")
        terminal.press("q")
        assert terminal.wait(20) == 0
        terminal.wait_for("training goes on in the background: demo/runs/demo")
        terminal.wait_for("tui demo/runs/demo")
    try:
        step = getattr(reader.status(), "step", 0)
        wait_until(lambda: getattr(reader.status(), "step", 0) > step)
        assert reader.state() is State.RUNNING
    finally:
        reader.ask("stop")
        wait_until(lambda: not reader.state().alive)


def test_ctrl_c_after_leaving_stops_training_at_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    endless = [*SMALL, "--epochs", "100000"]
    with Terminal("clip_tui.cli", "demo", "--plain", "--", *endless, cwd=tmp_path, size=(120, 40)) as terminal:
        terminal.wait_for("step 0/")
        terminal.press("ctrl+c")
        assert terminal.wait(60) == 130
        terminal.wait_for("to go on:")
    reader = RunReader(tmp_path / "demo" / "runs" / "demo")
    assert reader.state() is State.STOPPED
    assert reader.latest() is not None
