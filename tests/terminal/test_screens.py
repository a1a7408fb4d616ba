"""The other screens in a real terminal: texts from names, notes, captions and logs never reach it as sequences."""

import time
from pathlib import Path

from clip_core.run.paths import RunPaths
from clip_core.run.records import Label, State
from tests.terminal.terminal import Terminal
from tests.tui.conftest import HOSTILE, make_run


def test_hostile_names_notes_captions_and_logs_never_reach_the_terminal_as_sequences(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    make_run(root / "a[red]\u202ezzz", hostile=True, state=State.FINISHED)
    make_run(root / "plain", state=State.FINISHED)
    Label(name=HOSTILE[1], note=HOSTILE[2], pinned=True).write(RunPaths(root / "plain").label)
    with Terminal("clip_tui.cli", "runs", cwd=tmp_path, size=(160, 50)) as terminal:
        terminal.wait_for("★")
        terminal.wait_for("a[red]")
        terminal.press("space", "e")
        terminal.wait_for("Name in the list")
        terminal.press("enter")  # the name as it is offered, printable
        _wait_until_gone(terminal, "Name in the list")
        terminal.wait_for("bell clear…J title]0;owned")
        terminal.press("/")
        terminal.wait_for("letters of the name")
        terminal.press("z", "z", "z", "enter")
        terminal.wait_for("1 filtered out")
        terminal.press("space", "c")
        terminal.wait_for("Comparison")
        terminal.wait_for("training pairs")
        terminal.press("1")
        terminal.wait_for("1 filtered out")
        terminal.press("enter")
        terminal.wait_for("Validation")
        terminal.press("3")
        terminal.wait_for("validation 6")
        terminal.press("4", "g")
        terminal.wait_for("the pairs that the run was trained on")
        terminal.press("enter")
        _wait_until_gone(terminal, "type to filter")
        terminal.press("5")
        terminal.wait_for("templates")
        terminal.press("6")
        terminal.wait_for("Events")
        terminal.press("/", "r", "e", "d", "enter")
        terminal.wait_for("match ")
        terminal.press("q")
        assert terminal.wait() == 0
    assert b"owned\x07" not in terminal.received
    assert not set(terminal.received.decode("utf-8")) & set("\x9b\u202e\u2066")


def _wait_until_gone(terminal: Terminal, words: str, seconds: float = 60.0) -> None:
    """Until a dialog is closed, so that the next key is not typed into it."""
    deadline = time.monotonic() + seconds
    while words in terminal.text:
        assert time.monotonic() < deadline, f"{words!r} stayed on the screen:\n{terminal.text}"
        terminal.read()
