"""What is read of a run directory, as it is and as it changes."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from clip_core.run.paths import RunPaths
from clip_core.run.records import Label, Pointer, State, Status
from clip_core.run.writer import RunWriter
from clip_tui.watcher import RunWatch, Trainer, best_text, list_runs, overview
from clip_tui.widgets.run_bar import seconds_left
from tests.tui.conftest import BEST_STEP, make_run


def test_a_run_without_a_status_is_starting_while_its_trainer_lives_and_has_failed_afterwards(tmp_path: Path) -> None:
    RunPaths(tmp_path).log.write_text("clip-train: images not found: a.png\n\n")
    watch = RunWatch(tmp_path)
    assert watch.refresh(Trainer(os.getpid(), None)).state is State.STARTING
    ended = watch.refresh(Trainer(os.getpid(), 2))
    assert ended.state is State.FAILED
    assert ended.error == "clip-train: images not found: a.png"
    assert not ended.resumable


def test_a_start_that_failed_before_it_wrote_a_status_is_listed_with_its_error(tmp_path: Path) -> None:
    run = tmp_path / "first"
    run.mkdir()
    RunPaths(run).log.write_text("clip-train: " + "long " * 50 + "end\n")
    (listed,) = list_runs(tmp_path, {})
    assert (listed.path, listed.state) == (run, State.FAILED)
    assert listed.error is not None
    assert listed.error.endswith("end")


def test_a_run_that_this_app_started_elsewhere_is_listed_too(tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    listed = list_runs(tmp_path / "runs", {beside: Trainer(os.getpid(), None)})
    assert [(run.path, run.state) for run in listed] == [(beside, State.STARTING)]


def test_a_resumed_run_is_starting_until_its_new_trainer_writes_a_status(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", state=State.STOPPED)
    assert overview(run, Trainer(2**22 + 1, None)).state is State.STARTING
    assert overview(run, Trainer(os.getpid(), None)).state is State.STOPPED, "the status is of this trainer"


def test_the_best_checkpoint_is_that_of_best_json_with_its_metric_and_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    best = overview(run).best
    assert best is not None
    assert best.step == BEST_STEP
    assert best_text(best) == f"mean recall 30.0% @{BEST_STEP}"
    chosen = Pointer(checkpoint="c", step=1020, metric="mean_recall", scores={"mean_recall": 0.184})
    assert best_text(chosen) == "mean recall 18.4% @1020"
    assert best_text(None) is None


def test_only_whole_lines_and_numbers_become_curves(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.metric("train", 1, loss=1.0, odd="text", worse=None, yes=True)
    writer.close()
    with RunPaths(tmp_path).metrics.open("a") as handle:
        handle.write('{"kind": "train", "step": "x", "loss": 2}\nnot json\n{"kind": "train", "step": 2, "lo')
    snapshot = RunWatch(tmp_path).refresh()
    assert list(snapshot.curves) == ["loss"]
    assert len(snapshot.curves["loss"]) == 1


def test_after_a_resume_the_curves_hold_the_steps_of_the_new_branch_only(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=40)
    watch = RunWatch(run)
    assert watch.refresh().curves["loss"][-1].last == 40
    writer = RunWriter(run)
    writer.forget_after(20)
    writer.event(20, "resumed", pace="restart")
    writer.metric("train", 21, loss=0.5)
    writer.close()
    snapshot = watch.refresh()
    steps = [bucket.last for bucket in snapshot.curves["loss"]]
    assert steps == list(range(1, 22)), "no point twice, none of the dropped branch"
    assert snapshot.value("loss") == 0.5
    assert snapshot.evaluation["step"] == 20


def test_the_time_left_does_not_count_the_time_between_stop_and_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    writer = RunWriter(run)
    writer.status(state=State.RUNNING, step=12, steps=112)
    lines = [(1, -7200), (2, -7199)]  # a step a second, then two hours of nothing
    rows = [f'{{"kind": "train", "step": {step}, "time": {1e9 + at}, "loss": 1}}' for step, at in lines]
    rows.append(f'{{"kind": "event", "step": 2, "time": {1e9}, "message": "resumed", "pace": "restart"}}')
    rows += [f'{{"kind": "train", "step": {step}, "time": {1e9 + step}, "loss": 1}}' for step in range(3, 13)]
    RunPaths(run).metrics.write_text("\n".join(rows) + "\n")
    left = seconds_left(RunWatch(run).refresh())
    assert left is not None
    assert 99 < left < 101
    writer.close()


def test_pending_requests_and_their_outcomes_are_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    watch = RunWatch(run)
    for kind in ("pause", "checkpoint"):
        watch.reader.ask(kind)  # type: ignore[arg-type]
    first, second = watch.refresh().pending
    writer = RunWriter(run)
    writer.acknowledge(first, 40, "done", "paused")
    writer.close()
    snapshot = watch.refresh()
    assert snapshot.pending == (second,)
    assert [(event.request, event.message) for event in snapshot.events if event.outcome] == [(first.id, "paused")]
    assert abs(snapshot.events[-1].time - time.time()) < 60


def settled(run: Path) -> Path:
    """As if nothing had changed in the run for an hour."""
    for path in (run, *run.iterdir()):
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    return run


def test_a_run_that_has_ended_is_read_again_only_once_something_changed(tmp_path: Path) -> None:
    run = settled(make_run(tmp_path / "run", state=State.FINISHED))
    watch = RunWatch(run)
    first = watch.refresh()
    assert watch.refresh() is first
    listed = list_runs(tmp_path, {})
    assert list_runs(tmp_path, {})[0] is listed[0]
    Pointer(checkpoint="step_0000040", step=40, metric="mean_recall", scores={"mean_recall": 0.4}).write(
        RunPaths(run).best
    )
    for seen in (watch.refresh(), *list_runs(tmp_path, {})):
        assert seen.best is not None
        assert seen.best.step == 40
    with RunPaths(run).metrics.open("a") as handle:
        handle.write('{"kind": "train", "step": 41, "loss": 0.5}\n')
    assert watch.refresh().value("loss") == 0.5


def test_an_export_that_is_killed_is_noticed_though_no_file_changes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", state=State.FINISHED)
    exporter = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    status = Status(state=State.RUNNING, pid=exporter.pid, host=socket.gethostname(), heartbeat=time.time())
    status.write(RunPaths(run).export_status)
    watch = RunWatch(settled(run))
    for _ in range(2):
        export = watch.refresh().export
        assert export is not None
        assert export[0] is State.RUNNING
    exporter.kill()
    exporter.wait()
    export = watch.refresh().export
    assert export is not None
    assert export[0] is State.KILLED


def test_a_deleted_run_leaves_the_list(tmp_path: Path) -> None:
    run = settled(make_run(tmp_path / "run", state=State.FINISHED))
    assert len(list_runs(tmp_path, {})) == 1
    shutil.rmtree(run)
    assert list_runs(tmp_path, {}) == []
    run.mkdir()
    assert list_runs(tmp_path, {}) == []


def test_a_run_has_the_name_that_the_list_shows(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    watch = RunWatch(run)
    assert watch.refresh().name == "run"
    Label(name="larger batch").write(RunPaths(run).label)
    assert watch.refresh().name == "larger batch"


def test_a_status_that_cannot_be_read_is_said_and_not_the_last_line_of_the_log(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", state=State.FINISHED)
    RunPaths(run).status.write_text('{"state": "fini')
    assert "status.json cannot be read" in (overview(run).error or "")


def test_a_directory_that_vanishes_while_its_trainer_lives_is_gone_and_not_starting(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    watch, trainer = RunWatch(run), Trainer(os.getpid(), None)
    assert watch.refresh(trainer).state is State.RUNNING
    shutil.rmtree(run)
    snapshot = watch.refresh(trainer)
    assert (snapshot.gone, snapshot.state) == (True, State.KILLED)
