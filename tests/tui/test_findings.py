"""The findings of `clip-data check` on the Data screen."""

from pathlib import Path

import pytest
from textual.widgets import OptionList

from clip_core.config import DataConfig
from clip_core.data.findings_file import MOST_GROUPS
from clip_core.run.paths import RunPaths
from clip_core.run.records import Flags, RunRecord
from clip_tui.app import ClipApp
from clip_tui.screens.findings import FoundPair
from clip_tui.widgets.group_list import GroupList
from clip_tui.widgets.image_view import ImageView
from tests.streams import png, served, tar
from tests.tui.conftest import HOSTILE, SIZES
from tests.tui.pilot import opened, says, screen_text, until
from tests.tui.samples import write_findings


def image(run: Path, colour: str) -> str:
    return str(run.parent / "images" / f"{colour}.png")


@pytest.fixture
def found(runs: Path) -> Path:
    """A run whose data have two findings, one of a kind that no one knows, with the worst texts."""
    run = runs / "live"
    twins = [(image(run, "red"), "a red square"), (image(run, "blue"), HOSTILE[0]), (image(run, "green"), HOSTILE[1])]
    odd = [(str(run / "not there\x1b[2J.png"), HOSTILE[2])]
    write_findings(run, ["exact_duplicates", "new_kind"], [(0, 1, "3 images", twins), (1, 0, "[/] 0.12", odd)])
    return run


@pytest.mark.parametrize("size", SIZES)
async def test_a_finding_is_shown_with_its_images_and_its_pairs_are_flagged(found: Path, size: tuple[int, int]) -> None:
    app = ClipApp(found.parent)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, found, "data")
        await says(pilot, "red.png")
        await pilot.press("v")
        await says(pilot, "exact duplicates")
        await until(pilot, lambda: bool(app.screen.query_one("#thumbnail-2", ImageView)._strips))
        await pilot.press("right", "f")
        await says(pilot, "flagged")
        flags = RunPaths(found).flags
        assert [(pair.image, pair.caption) for pair in Flags.read(flags).pairs] == [(image(found, "blue"), HOSTILE[0])]
        await pilot.press("F")
        await until(pilot, lambda: len(Flags.read(flags).pairs) == 2)
        assert image(found, "red") not in {pair.image for pair in Flags.read(flags).pairs}, "the first stays"
        await pilot.press("u")
        await until(pilot, lambda: len(Flags.read(flags).pairs) == 1)
        await pilot.press("u")
        await until(pilot, lambda: not Flags.read(flags).pairs)
        await pilot.press("F")
        await says(pilot, "2 of 6 pairs will be flagged")
        await pilot.press("escape", "F")
        await says(pilot, "2 of 6 pairs will be flagged")
        assert not Flags.read(flags).pairs, "not before the answer"
        await pilot.press("y")
        await until(pilot, lambda: len(Flags.read(flags).pairs) == 2)
        await pilot.press("down")
        await says(pilot, "pairs that are new_kind")
        await until(pilot, lambda: bool(app.screen.query_one("#thumbnail-0", ImageView).problem))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, FoundPair))
        assert not any(ord(sign) < 32 for sign in screen_text(app).replace("\n", "")), "no control character"


async def test_a_hundred_thousand_groups_are_read_as_they_are_looked_at(found: Path) -> None:
    pair = (image(found, "red"), "a red square")
    write_findings(found, ["blurred"], [(0, 0, f"number {n}", [pair]) for n in range(MOST_GROUPS)])
    app = ClipApp(found.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, found, "data")
        await pilot.press("v")
        await until(pilot, lambda: app.screen.query_one(GroupList).count == MOST_GROUPS)
        app.screen.query_one(GroupList).focus()
        await pilot.press("end")
        await says(pilot, f"number {MOST_GROUPS - 1}")
        assert app.screen._read_line.cache_info().currsize < 100  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["", "{}\n", '{"data": "\\u001b[2J"', "[]\n[1]\n", '[0, 0, "", 5]\n'])
async def test_a_damaged_file_is_said_and_not_shown(found: Path, text: str) -> None:
    RunPaths(found).findings.write_text(text)
    app = ClipApp(found.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, found, "data")
        await pilot.press("v")
        await says(pilot, "check again")
        assert app.screen.query_one("#kinds", OptionList).option_count == 0


async def test_a_check_is_started_shown_and_can_be_cancelled(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        run = runs / "live"
        await opened(pilot, run, "data")
        await pilot.press("v", "c")
        await says(pilot, "Checking")
        await pilot.press("c")
        await says(pilot, "cancelled")
        assert not RunPaths(run).findings.exists()
        await pilot.press("c")
        await says(pilot, "The check found nothing", seconds=60)
        assert "6 usable pairs" in RunPaths(run).check_log.read_text()
        data_file = RunRecord.read(RunPaths(run).config).config.data.data_file
        assert data_file is not None
        data_file.unlink()
        await pilot.press("c")
        await says(pilot, "The check failed: clip-data: ", seconds=60)


async def test_the_data_of_a_run_on_a_remote_stream_are_checked_and_shown(runs: Path, tmp_path: Path) -> None:
    run, twin = runs / "live", png(5)
    members = [(f"{n}{suffix}", content) for n in range(2) for suffix, content in ((".png", twin), (".txt", b"a cat"))]
    tar(tmp_path / "shards" / "0.tar", members)
    with served(tmp_path / "shards") as server:
        record = RunRecord.read(RunPaths(run).config)
        data = DataConfig(data_file=Path(f"{server.url}/{{0..0}}.tar"), stream=True)
        record.model_copy(update={"config": record.config.model_copy(update={"data": data})}).write(
            RunPaths(run).config
        )
        app = ClipApp(runs)
        async with app.run_test(size=(120, 40)) as pilot:
            await opened(pilot, run, "data")
            await pilot.press("t")
            await says(pilot, "the training pairs are streamed")
            await pilot.press("v", "c")
            await says(pilot, "exact duplicates", seconds=60)
            await until(pilot, lambda: bool(app.screen.query_one("#thumbnail-1", ImageView)._strips))
            await pilot.press("F")
            await until(pilot, lambda: RunPaths(run).flags.is_file())
            assert [pair.image for pair in Flags.read(RunPaths(run).flags).pairs] == [
                f"{server.url}/0.tar!/2560+82/1.png"
            ]
