"""The log, the events and the system of a run."""

from pathlib import Path

import pytest
from rich.cells import cell_len

from clip_core.run.paths import RunPaths
from clip_core.text import printable
from clip_tui.app import ClipApp
from clip_tui.widgets.log_view import wrapped
from tests.tui.conftest import HOSTILE, SIZES
from tests.tui.pilot import opened, says


@pytest.mark.parametrize("size", SIZES)
async def test_logs_show_what_the_trainer_printed_and_the_system(runs: Path, size: tuple[int, int]) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, runs / "live", "logs")
        await says(pilot, "step 59")
        await pilot.press("tab", "end")
        await says(pilot, "torch")
        with RunPaths(runs / "live").log.open("a") as log:
            log.write("one more line\n")
        await says(pilot, "one more line")


async def test_words_are_found_and_the_log_stands_at_each_match(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 30)) as pilot:
        await opened(pilot, runs / "live", "logs")
        await says(pilot, "step 59")
        await pilot.press("slash", *"STEP 7", "enter")
        await says(pilot, "match 1 of 1")
        await says(pilot, "step 7  loss")
        await pilot.press("slash", "end", *("backspace",) * 6, *"loss 1.1", "enter")
        await says(pilot, "match 11 of 11")  # 1.1 and 1.10 to 1.19, the latest first
        await pilot.press("n")
        await says(pilot, "match 1 of 11")
        await pilot.press("p")
        await says(pilot, "match 11 of 11")
        await pilot.press("escape", "f")
        await says(pilot, "follows the end")


async def test_long_lines_and_events_are_whole_at_every_width(runs: Path) -> None:
    log = RunPaths(runs / "live").log
    log.write_text("".join(f"line {n} " + "x" * 200 + f" end{n}\n" for n in range(3000)))
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "logs")
        await says(pilot, "line 2999 ")
        await pilot.press("slash", *"end2500", "enter")
        await says(pilot, "line 2500 ")
        await pilot.press("y")
        await pilot.resize_terminal(160, 50)
        await says(pilot, "line 2500 ")
        assert app.screen.copied() == "line 2500 " + "x" * 200 + " end2500"  # type: ignore[attr-defined]


async def test_events_are_reached_and_copied_by_keys(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    app = ClipApp(runs)
    monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "hostile", "logs")
        await says(pilot, "Events 3")
        await pilot.press("e", "y")
        assert copied == [printable(HOSTILE[2])], "the latest event"


def test_lines_break_at_words_and_nothing_is_lost() -> None:
    line = "step 7  val loss 4.181, recall@1 of 漢字漢字 " + "x" * 30 + " end"
    rows = wrapped(line, 12)
    assert "".join(rows) == line
    assert all(cell_len(row.rstrip()) <= 12 for row in rows)
    assert [row.strip() for row in rows][:3] == ["step 7  val", "loss 4.181,", "recall@1 of"]
    assert rows.count("x" * 12) == 2, "only a word wider than the row is broken"
