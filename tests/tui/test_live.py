"""The open run as it trains."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from textual.widgets import Input, Static

from clip_core.run.history import Event
from clip_core.run.paths import RunPaths
from clip_core.run.reader import RunReader
from clip_core.run.records import Pointer, State
from clip_core.run.requests import Malformed, Request, pending
from clip_core.run.writer import RunWriter
from clip_tui.app import ClipApp
from clip_tui.screens.jump import JumpScreen
from clip_tui.status_line import requests_line, status_line
from clip_tui.watcher import Snapshot
from clip_tui.widgets.heat_map import HeatMap
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


# ---------------------------------------------------------------- charts


async def test_keys_zoom_pan_and_put_the_cursor_on_every_chart(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "live")
        plots = [app.screen.query_one(f"#plot-{number}", Plot) for number in range(2)]
        await until(pilot, lambda: all(plot.chart.lines for plot in plots))
        await pilot.press("right", "left", "left")
        await until(pilot, lambda: screen_text(app).count("@38") == 4)
        await pilot.press("plus", "plus")
        await until(pilot, lambda: [round(plot.frame.last - plot.frame.first) for plot in plots] == [25, 25])
        before = plots[0].frame.first
        await pilot.press("less_than_sign")
        await until(pilot, lambda: plots[0].frame.first < before)
        await pilot.press("0")
        await until(pilot, lambda: (plots[0].frame.first, plots[0].frame.last) == (0, 100))
        assert "@38" not in screen_text(app)
        await pilot.press("x", "x", "w", "l")
        await until(pilot, lambda: "images" in screen_text(app) and "log · EMA" in screen_text(app))
        assert plots[0].frame.last == 6400


async def test_the_mouse_moves_the_cursor_zooms_and_pans(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "live")
        plot = app.screen.query_one("#plot-1", Plot)
        await until(pilot, lambda: bool(plot.chart.lines) and plot.frame.last == 100)
        await pilot.click("#plot-1", offset=(8 + 35, 5))
        await until(pilot, lambda: "@51" in screen_text(app))
        plot.post_message(Plot.Zoomed(2.0, 50))
        await until(pilot, lambda: (plot.frame.first, plot.frame.last) == (25, 75))
        await pilot.mouse_down("#plot-1", offset=(40, 5))
        await pilot.hover("#plot-1", offset=(54, 5))
        await pilot.mouse_up("#plot-1", offset=(54, 5))
        await until(pilot, lambda: plot.frame.first < 20)


async def test_another_run_is_drawn_over_the_open_one(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "live")
        app.overlays = (runs / "older",)
        await says(pilot, "older train")
        names = [(line.run, line.name) for line in app.screen.query_one("#plot-0", Plot).chart.lines]
        assert names == [("live", "train"), ("", "val"), ("older", "train"), ("", "val")]


@pytest.mark.parametrize("flag", ["no_color", "ascii"])
async def test_without_colours_curves_differ_by_their_signs(
    runs: Path, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flag == "no_color":
        monkeypatch.setenv("NO_COLOR", "1")
    app = ClipApp(runs, ascii_only=flag == "ascii")
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "live")
        plot = app.screen.query_one("#plot-0", Plot)
        await until(pilot, lambda: bool(plot.chart.lines))
        rows = [strip_text(plot.render_line(y)) for y in range(plot.size.height)]
        first, second = ("*", "o") if flag == "ascii" else ("•", "o")
        assert f"{first} train" in rows[0]
        assert f"{second} val" in rows[0]
        drawn = "".join(row[8:] for row in rows[1:-1])
        assert drawn.count(first) > 20
        assert drawn.count(second) > 5
        assert not any("\u2800" <= sign <= "\u28ff" for sign in drawn)


# ---------------------------------------------------------------- the probe


async def test_older_evaluations_are_looked_at_and_a_pair_is_flagged_as_bad(runs: Path) -> None:
    run = RunReader(runs / "live")
    probe = run.probe()
    assert probe is not None
    older = probe.model_copy(update={"step": 10, "similarity": [[0.5] * 6, *([0.9, *[0.1] * 5] for _ in range(5))]})
    older.write(run.paths.probe(10))
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "live")
        await says(pilot, "2/2")
        await pilot.press("left_square_bracket")
        await says(pilot, "Probe 6x6, step 10")
        await until(pilot, lambda: screen_text(app).count("rank 2") == 5)
        await pilot.press("n", "f")
        await says(pilot, "✗ bad")
        assert [(Path(pair.image).name, pair.caption) for pair in run.flags().pairs] == [("blue.png", "a blue square")]
        await pilot.press("enter")
        await says(pilot, "flagged as bad in flags.json")
        await pilot.press("escape", "f")
        await until(pilot, lambda: run.flags().pairs == [])
        await pilot.press("right_square_bracket")
        await says(pilot, "Probe 6x6, step 40")


async def test_a_cell_opens_its_image_and_its_caption(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "live")
        await says(pilot, "1/1")
        heat = app.screen.query_one(HeatMap)
        await pilot.click(HeatMap, offset=(heat.cell_width * 2 + 1, 1))
        await says(pilot, "0.20 a green square")
        heat.focus()
        await pilot.press("enter")
        await says(pilot, "caption: a green square")
        assert "own caption: a blue square" in screen_text(app)
        assert "cosine 0.200 at step 40, its own caption has rank 1" in screen_text(app)


# ---------------------------------------------------------------- the learning rate


async def test_another_learning_rate_is_requested_as_a_number_or_a_factor(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "live")
        await says(pilot, "u Set lr")
        for typed in ("fast", "3", "x0.5"):
            await pilot.press("u")
            await says(pilot, "Learning rate, now 0.0006")
            app.screen.query_one(Input).value = typed
            await pilot.press("enter")
        await says(pilot, "u Set lr")
        (request,) = pending(RunPaths(runs / "live").requests)
        assert isinstance(request, Request)
        assert (request.kind, request.value) == ("learning_rate", pytest.approx(3e-4))
        await says(pilot, "learning rate 0.0003: pending")


def test_the_status_line_cuts_the_alarm_and_keeps_requests() -> None:
    events = [
        Event(3, 100.0, "the validation loss \x1b[2Jrises " * 9, health=True),
        Event(4, 900.0, "checkpoint 720 saved", request="a", outcome="done"),
    ]
    waiting = [Request("c", "pause", 0.0)]
    best = Pointer(checkpoint="step_0000030", step=30, metric="mean_recall", scores={"mean_recall": 0.184})
    snapshot = Snapshot(Path("run"), State.RUNNING, events=events, pending=waiting, best=best)
    shown = status_line(snapshot, 910.0, 110)
    line = shown.plain
    assert line.startswith("⚠ step 3: the validation loss [2J")
    assert shown.get_style_at_offset(Console(), 0).dim  # the run became better after it
    before = replace(snapshot, best=best.model_copy(update={"step": 2}))
    assert not status_line(before, 910.0, 110).get_style_at_offset(Console(), 0).dim
    assert line.endswith("… · best mean recall 18.4% @30 · pause: pending · ✓ checkpoint 720 saved")
    assert len(line) == 110


# ---------------------------------------------------------------- damaged runs


async def test_a_torn_line_a_newer_schema_and_a_vanished_run_are_met_in_stride(runs: Path) -> None:
    run = runs / "live"
    config = json.loads(RunPaths(run).config.read_text())
    RunPaths(run).config.write_text(json.dumps(config | {"schema": 99}))
    RunPaths(run).probe(50).write_text('{"step": 50, "images": ["a"')
    with RunPaths(run).metrics.open("a") as handle:
        handle.write('{"kind": "train", "step": 41, "loss": 0.25}\n{"kind": "train", "step": 42, "lo')
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await pilot.pause()
        app.open_run(run)
        await says(pilot, "train 0.250")
        await says(pilot, "written by a newer version")
        shutil.rmtree(run)
        await says(pilot, "✗ directory gone")
        await says(pilot, "its directory was deleted or moved")
        await pilot.press("n", "f", "right", "plus", "left_square_bracket", "enter")
        await pilot.pause(0.6)
        assert "2 Live" in screen_text(app)


async def test_jump_mode_reaches_every_panel_and_what_has_the_focus_is_enlarged_or_copied(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "live")
        await says(pilot, "Recall@1")
        await pilot.press("ctrl+o")
        await says(pilot, "a letter jumps there")
        jump = app.screen
        assert isinstance(jump, JumpScreen)
        plots = [f"plot-{index}" for index in range(4)]
        assert [widget.id for widget in jump._targets.values()] == [*plots, "pair-panel", "scores", "heat-map"]
        await pilot.press("s")
        assert app.focused is app.screen.query_one("#plot-1")
        title = app.screen.query_one("#plot-1", Plot).chart.title
        assert str(app.screen.copied()).startswith(f"{title}\n")  # type: ignore[attr-defined]
        await pilot.press("z")
        await pilot.pause()
        assert app.screen.query_one("#plot-0", Plot).chart.title == title
        await pilot.press("tab", "tab", "tab")
        assert "mean recall" in str(app.screen.copied())  # type: ignore[attr-defined]


async def test_an_evaluation_that_comes_while_the_screen_is_open_has_its_ranks_and_is_reached_by_a_click(
    runs: Path,
) -> None:
    paths = RunPaths(runs / "live")
    probe = RunReader(runs / "live").probe(paths.probe(40))
    assert probe is not None
    paths.probe(40).unlink()
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot, runs / "live", "live")
        await says(pilot, "no evaluation yet")
        writer = RunWriter(runs / "live")
        for step in (40, 50, 60, 70):
            writer.probe(probe.model_copy(update={"step": step}))
        await says(pilot, "Probe 6x6, step 70")
        writer.close()
        ranks = app.screen.query_one("#heat-ranks", Static)
        await until(pilot, lambda: str(ranks.render()).count("✓") == 6)
        await pilot.click("#scrubber", offset=(2 + 4, 0))  # in the middle of the bar
        await says(pilot, "Probe 6x6, step 50")
