"""The log, the events and the system of a run."""

from pathlib import Path

import pytest

from clip_core.run.paths import RunPaths
from clip_tui.app import ClipApp
from tests.tui.conftest import SIZES
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
