"""Live in a real terminal: texts from files never reach it as sequences, and what it shows is what is meant."""

from pathlib import Path

from tests.terminal.terminal import Terminal
from tests.tui.conftest import make_run


def test_hostile_texts_of_a_run_never_reach_the_terminal_as_sequences(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "hostile", hostile=True, prefix="[red][@click=app.quit]\x1b[2J\x07\u202e")
    with Terminal("clip_tui.cli", "runs/hostile", cwd=tmp_path, size=(160, 50)) as terminal:
        terminal.wait_for("⚠ step 40: [red]not red[/red]")
        terminal.wait_for("✗ right")
        terminal.press("n", "n", "f")
        terminal.wait_for("✗ bad")
        terminal.press("m", "enter")
        terminal.wait_for("flagged as bad in flags.json")
        terminal.press("enter")
        terminal.wait_for("Validation")
        terminal.press("q")
        assert terminal.wait() == 0
    shown = terminal.received
    assert b"owned\x07" not in shown
    assert b"\x1b[2J" not in shown
    assert not set(shown.decode("utf-8")) & set("\x9b\u202e\u2066")


def test_after_many_small_changes_the_terminal_shows_what_a_few_lead_to(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "live")
    screens = []
    for keys in (("l", "x", "m"), ("w", "right", "x", "x", "n", "w", "m", "l", "+", "<", "w", "x", "x", "0")):
        with Terminal("clip_tui.cli", str(run), cwd=tmp_path, size=(120, 40)) as terminal:
            terminal.wait_for("R@1")
            terminal.press(*keys)
            terminal.wait_for("Accuracy within the batch" if keys[-1] == "m" else "time")
            for _ in range(15):
                terminal.read(0.1)
            screens.append([line for line in terminal.text.splitlines() if "│ []" not in line][:24])
    assert screens[0] == screens[1]
