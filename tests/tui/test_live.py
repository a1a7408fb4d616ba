"""The open run as it trains."""

from pathlib import Path

import pytest

from clip_core.run.history import Event
from clip_core.run.paths import RunPaths
from clip_core.run.records import State
from clip_core.run.requests import Malformed, Request, pending
from clip_core.run.writer import RunWriter
from clip_tui.app import ClipApp
from clip_tui.status_line import requests_line
from clip_tui.watcher import Snapshot
from clip_tui.widgets.image_view import ImageView
from clip_tui.widgets.plot import Plot
from clip_tui.widgets.probe_view import PairPanel
from tests.tui.conftest import BEST_STEP, SIZES
from tests.tui.pilot import opened, says, screen_text, strip_text, until


def queue(run: Path) -> list[str]:
    """The kinds of the requests in the queue."""
    return [request.kind for request in pending(RunPaths(run).requests) if isinstance(request, Request)]


@pytest.mark.parametrize("size", SIZES)
async def test_enter_opens_the_chosen_run(runs: Path, size: tuple[int, int]) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=size) as pilot:
        await says(pilot, "40 / 100")
        await pilot.press("enter")
        for words in ("Recall@1", "Loss", "train", "val ", "step 40", "red.png", "0.90✓", "p Pause", "s Stop"):
            await says(pilot, words)
        await says(pilot, f"mean recall 30.0% @{BEST_STEP}")


async def test_new_lines_of_the_trainer_reach_the_screen(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "live")
        writer = RunWriter(runs / "live")
        writer.metric("train", 77, loss=0.123)
        writer.status(step=77, steps=100)
        await says(pilot, "step 77 / 100")
        await says(pilot, "0.123")
        writer.close()


async def test_a_spike_of_one_step_stays_visible_in_the_curve(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "live")
        await until(pilot, lambda: bool(app.screen.query_one("#plot-0", Plot).chart.lines))
        top = strip_text(app.screen.query_one("#plot-0", Plot).render_line(2))
        assert any("\u2800" < sign <= "\u28ff" for sign in top)


async def test_two_keys_in_quick_succession_are_two_requests(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "live")
        await says(pilot, "p Pause")
        await pilot.press("c", "v")
        assert queue(runs / "live") == ["checkpoint", "evaluate"]
        await says(pilot, "checkpoint: pending · evaluate: pending")
        writer = RunWriter(runs / "live")
        first = next(writer.pending_requests())
        writer.acknowledge(first, 40, "done", "checkpoint 40 saved")
        writer.close()
        await says(pilot, "evaluate: pending · ✓ checkpoint 40 saved")


async def test_every_request_but_pause_can_be_made_while_paused(runs: Path) -> None:
    writer = RunWriter(runs / "live")
    writer.status(state=State.PAUSED, step=40, steps=100)
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "live")
        await says(pilot, "● paused")
        await pilot.press("p", "v", "c", "r", "s")
        assert queue(runs / "live") == ["evaluate", "checkpoint", "resume", "stop"]
    writer.close()


async def test_a_finished_run_takes_no_request(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "older", "live")
        await says(pilot, "✓ finished")
        await pilot.press("p", "s", "r", "c")
        assert "Pause" not in screen_text(app)
        assert queue(runs / "older") == []


def test_the_line_of_requests_names_what_is_pending_and_each_outcome() -> None:
    events = [
        Event(3, 100.0, "resumed"),
        Event(4, 100.0, "paused", request="a", outcome="done"),
        Event(5, 900.0, "not while \x1b[2J evaluating", request="b", outcome="refused"),
    ]
    waiting = [Request("c", "pause", 0.0), Malformed("x.txt", "its name does not end in .json")]
    running = Snapshot(Path("run"), State.RUNNING, events=events, pending=waiting)
    said = requests_line(running, now=910.0).plain
    assert said == "pause: pending · invalid request x.txt: pending · ✗ not while [2J evaluating"
    stopped = Snapshot(Path("run"), State.STOPPED, pending=waiting[:1])
    assert requests_line(stopped, now=910.0).plain == "pause: no trainer runs"


async def test_opening_another_run_leaves_nothing_of_the_first_on_the_screen(runs: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "runs" / "fresh"
    writer = RunWriter(fresh)
    writer.status(state=State.STARTING)
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "live")
        await says(pilot, "red.png")
        await pilot.press("n")
        await says(pilot, "blue.png")
        app.open_run(fresh)
        await says(pilot, "no evaluation yet")
        await until(pilot, lambda: "blue.png" not in screen_text(app))
        shown = screen_text(app)
        assert "a blue square" not in shown
        assert "@30" not in shown
        assert app.screen.query_one(PairPanel).query_one(ImageView).path is None
        app.open_run(runs / "live")
        await says(pilot, "red.png")
    writer.close()


async def test_resume_needs_a_checkpoint(runs: Path) -> None:
    writer = RunWriter(runs / "live")
    writer.status(state=State.FAILED, step=3, steps=100, error="the loss is not finite")
    writer.close()
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, runs / "live", "live")
        await says(pilot, "r Resume")
        RunPaths(runs / "live").latest.unlink()
        await until(pilot, lambda: "r Resume" not in screen_text(app))
        await pilot.press("r")
        assert app.trainers == {}


async def test_after_a_resume_the_screen_forgets_the_dropped_branch(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "live")
        plot = app.screen.query_one("#plot-0", Plot)
        await until(pilot, lambda: bool(plot.chart.lines) and plot.chart.lines[0].points[-1].last == 40)
        writer = RunWriter(runs / "live")
        writer.forget_after(20)
        RunPaths(runs / "live").best.unlink()
        writer.metric("train", 21, loss=1.0)
        await until(pilot, lambda: plot.chart.lines[0].points[-1].last == 21)
        assert [bucket.last for bucket in plot.chart.lines[0].points] == list(range(1, 22))
        assert f"@{BEST_STEP}" not in screen_text(app)
        writer.close()


async def test_hostile_metric_names_are_drawn_like_any_other(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "hostile", "live")
        for _ in range(5):
            if "[red]odd[2J" in screen_text(app):
                break
            await pilot.press("m")
            await pilot.pause(0.2)
        assert "[red]odd[2J" in screen_text(app)
