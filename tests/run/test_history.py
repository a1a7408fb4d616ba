import itertools
import json
from pathlib import Path

import pytest

from clip_core.run.history import CURVES_KEPT, EVENTS_KEPT, History
from clip_core.run.reader import BLOCK, RunReader
from clip_core.run.writer import RunWriter


def history_of(path: Path) -> History:
    history = History(RunReader(path))
    history.refresh()
    return history


def write_lines(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def points(history: History, key: str) -> list[tuple[int, float]]:
    return [(bucket.first, bucket.high) for bucket in history.curves()[key]]


def test_curves_last_lines_and_events_follow_the_file(writer: RunWriter) -> None:
    history = History(RunReader(writer.path))
    history.refresh()
    assert (history.curves(), history.last, history.complete) == ({}, {}, True)
    writer.metric("train", 1, loss=3.0, epoch=0)
    writer.event(1, "careful", health=True)
    history.refresh()
    writer.metric("train", 2, loss=2.0, epoch=0)
    writer.metric("eval", 2, val_loss=2.5, mean_recall=0.5)
    writer.event(2, "saved", request="7", asked="checkpoint", outcome="done")
    history.refresh()
    assert points(history, "loss") == [(1, 3.0), (2, 2.0)]
    assert points(history, "val_loss") == [(2, 2.5)]
    assert set(history.curves()) == {"loss", "val_loss", "mean_recall"}
    assert (history.last["train"]["loss"], history.last["eval"]["mean_recall"]) == (2.0, 0.5)
    assert [(e.step, e.message, e.request, e.outcome, e.health) for e in history.events] == [
        (1, "careful", None, None, True),
        (2, "saved", "7", "done", False),
    ]
    writer.close()


def test_keys_that_come_and_go_keep_their_order(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"kind": "train", "step": step, "a": float(step)} | ({"b": step} if step % 3 == 0 else {})
        for step in range(1, 31)
    ]
    write_lines(tmp_path / "metrics.jsonl", lines)
    history = history_of(tmp_path)
    assert points(history, "a") == [(step, float(step)) for step in range(1, 31)]
    assert points(history, "b") == [(step, step) for step in range(3, 31, 3)]


def test_values_that_cannot_be_drawn_are_skipped(tmp_path: Path) -> None:
    odd: list[object] = [None, "1", True, [1], {"a": 1}, float("nan"), float("inf"), 10**400, -(10**400)]
    lines: list[dict[str, object]] = [
        {"kind": "train", "step": step, "loss": value} for step, value in enumerate([*odd, 1.5, 2])
    ]
    lines += [{"kind": "train", "step": step, "loss": 9.0} for step in (None, "1", True, -1, 10**30, 1.5)]
    lines += [{"kind": kind, "step": 1, "loss": 9.0} for kind in (None, "other", ["train"], {"a": 1})]
    lines += [{"kind": "event", "step": 1, "message": ["x"], "request": 7, "time": "noon"}]
    write_lines(tmp_path / "metrics.jsonl", lines)
    history = history_of(tmp_path)
    assert points(history, "loss") == [(9, 1.5), (10, 2)]
    assert history.events[0].request is None


def test_lines_out_of_order_are_skipped(tmp_path: Path) -> None:
    steps = [1, 2, 5, 3, 5, 6]
    write_lines(tmp_path / "metrics.jsonl", [{"kind": "train", "step": step, "loss": 1.0} for step in steps])
    assert [step for step, _ in points(history_of(tmp_path), "loss")] == [1, 2, 5, 5, 6]


def test_memory_is_bounded_whatever_the_file_holds(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"kind": "train", "step": step, f"key {step}": 1.0, "loss": 1.0} for step in range(3 * CURVES_KEPT)
    ]
    lines += [{"kind": f"kind {step}", "step": step} for step in range(1000)]
    lines += [{"kind": "event", "step": step, "message": "x"} for step in range(3 * EVENTS_KEPT)]
    write_lines(tmp_path / "metrics.jsonl", lines)
    history = history_of(tmp_path)
    assert len(history.curves()) == CURVES_KEPT
    assert len(points(history, "loss")) == 3 * CURVES_KEPT
    assert len(history.events) == EVENTS_KEPT
    assert set(history.last) == {"train"}


def test_the_dropped_branch_of_a_resumed_run_is_forgotten(writer: RunWriter) -> None:
    for step in range(1, 11):
        writer.metric("train", step, loss=float(step))
    writer.metric("eval", 10, mean_recall=0.9)
    writer.event(10, "of the dropped branch")
    history = History(RunReader(writer.path))
    history.refresh()
    writer.forget_after(6)
    for step in range(7, 13):
        writer.metric("train", step, loss=-float(step))
    history.refresh()
    expected = [(step, float(step) if step <= 6 else -float(step)) for step in range(1, 13)]
    assert points(history, "loss") == expected
    assert "mean_recall" not in history.curves()
    assert "eval" not in history.last
    assert list(history.events) == []
    writer.close()


def test_resumes_between_two_refreshes_are_noticed(writer: RunWriter) -> None:
    for step in range(1, 11):
        writer.metric("train", step, loss=1.0)
    history = History(RunReader(writer.path))
    history.refresh()
    for _ in range(3):  # the file system may give the third file the number of the first
        writer.forget_after(5)
        for step in range(6, 20):
            writer.metric("train", step, loss=2.0)
    history.refresh()
    assert points(history, "loss") == [(step, 1.0 if step <= 5 else 2.0) for step in range(1, 20)]
    writer.close()


@pytest.mark.parametrize("message", ["resumed", "training again after a pause"])
def test_the_pace_leaves_out_stops_and_pauses(message: str, tmp_path: Path) -> None:
    steady: list[dict[str, object]] = [
        {"kind": "train", "step": step, "time": 1000 + step / 2, "loss": 1.0} for step in range(1, 9)
    ]
    event: dict[str, object] = {"kind": "event", "step": 8, "time": 5000, "message": message, "pace": "restart"}
    later: list[dict[str, object]] = [
        {"kind": "train", "step": step, "time": 5000 + (step - 8) / 2, "loss": 1.0} for step in range(9, 13)
    ]
    write_lines(tmp_path / "metrics.jsonl", steady)
    assert history_of(tmp_path).steps_per_second() == pytest.approx(2.0)
    write_lines(tmp_path / "metrics.jsonl", [*steady, event])
    assert history_of(tmp_path).steps_per_second() is None
    write_lines(tmp_path / "metrics.jsonl", [*steady, event, *later])
    assert history_of(tmp_path).steps_per_second() == pytest.approx(2.0)


def test_the_writer_says_where_the_pace_begins_anew(writer: RunWriter) -> None:
    writer.metric("train", 1, loss=1.0)
    writer.metric("train", 2, loss=1.0)
    writer.event(2, "resumed at step 2", pace="restart")
    assert history_of(writer.path).steps_per_second() is None
    writer.close()


def test_a_large_file_has_whole_curves_at_once_and_exact_ones_later(tmp_path: Path) -> None:
    count = 20 * BLOCK // 1000
    with (tmp_path / "metrics.jsonl").open("w") as handle:
        for step in range(count):
            loss = 99.0 if step == count // 2 + 1 else 1.0
            handle.write(json.dumps({"kind": "train", "step": step, "loss": loss, "pad": "x" * 960}) + "\n")
    history = History(RunReader(tmp_path))
    history.refresh(seconds=0)
    assert not history.complete
    outline = history.curves()["loss"]
    assert outline[-1].last > 0.99 * count
    assert all(a.last < b.first for a, b in itertools.pairwise(outline))
    while not history.complete:
        history.refresh(seconds=0)
    curve = history.curves()["loss"]
    assert (curve[0].first, curve[-1].last) == (0, count - 1)
    assert max(bucket.high for bucket in curve) == 99.0  # a spike that the samples had missed
