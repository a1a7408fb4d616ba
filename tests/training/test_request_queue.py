"""Which requests are accepted in which state; each is acknowledged exactly once."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip_core.run.reader import RunReader
from clip_core.run.requests import RequestKind
from clip_core.run.writer import RunWriter
from clip_core.training.request_queue import RequestQueue
from tests.running import lines


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    writer = RunWriter(tmp_path / "run")
    yield writer
    writer.close()


def ask(writer: RunWriter, *kinds: RequestKind) -> None:
    for kind in kinds:
        RunReader(writer.path).ask(kind)


def outcomes(writer: RunWriter) -> list[tuple[str | None, str, str]]:
    return [(line["asked"], line["outcome"], line["message"]) for line in lines(writer.path, "event")]


def test_requests_are_served_in_their_order_and_stay_pending_until_they_are_acknowledged(writer: RunWriter) -> None:
    queue = RequestQueue(writer)
    ask(writer, "checkpoint", "evaluate", "pause")
    queue.take(3)
    queue.take(3)
    first = queue.next()
    assert first is not None
    assert first.kind == "checkpoint"
    assert next(iter(RunReader(writer.path).pending_requests())).id == first.id
    queue.done(first, 3, "saved")
    assert [request.kind for request in (queue.next(), queue.next()) if request] == ["evaluate", "pause"]
    assert queue.next() is None
    assert outcomes(writer) == [("pause", "done", "pausing"), ("checkpoint", "done", "saved")]


def test_what_makes_no_sense_in_the_state_is_refused(writer: RunWriter) -> None:
    queue = RequestQueue(writer)
    ask(writer, "resume", "pause", "pause", "resume", "resume", "stop", "stop", "evaluate")
    queue.take(0)
    assert outcomes(writer) == [
        ("resume", "refused", "the run is not paused"),
        ("pause", "done", "pausing"),
        ("pause", "refused", "the run is paused already"),
        ("resume", "done", "resuming"),
        ("resume", "refused", "the run is not paused"),
        ("stop", "done", "stopping"),
        ("stop", "refused", "the run is stopping"),
        ("evaluate", "refused", "the run is stopping"),
    ]
    assert queue.stopping


def test_during_an_evaluation_it_is_said_when_a_request_is_served(writer: RunWriter) -> None:
    queue = RequestQueue(writer)
    ask(writer, "pause", "stop")
    queue.take(5, when=" after this evaluation")
    assert [message for _, _, message in outcomes(writer)] == [
        "pausing after this evaluation",
        "stopping after this evaluation",
    ]


def test_requests_from_before_the_trainer_started_expire(writer: RunWriter) -> None:
    old = RunReader(writer.path).ask("stop")
    path = writer.paths.requests / f"{old.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time": time.time() - 1e6}))
    queue = RequestQueue(writer)
    ask(writer, "evaluate")  # after the start
    queue.take(0)
    assert outcomes(writer) == [("stop", "expired", "requested before this trainer started")]
    request = queue.next()
    assert request is not None
    assert request.kind == "evaluate"


def test_malformed_requests_are_reported_once_and_ignored(writer: RunWriter) -> None:
    queue = RequestQueue(writer)
    (writer.paths.requests / "1.json").write_text('{"request": "explode", "id": "1"}')
    (writer.paths.requests / "2.json").write_text("[")
    (writer.paths.requests / "3.txt").write_text("")
    (writer.paths.requests / "4.json").mkdir()
    for _ in range(2):
        queue.take(0)
    reported = outcomes(writer)
    assert [outcome for _, outcome, _ in reported] == ["invalid"] * 4
    assert 'its request is "explode", not one of pause' in reported[0][2]
    assert queue.next() is None


def test_at_the_end_what_can_no_longer_be_served_is_refused(writer: RunWriter) -> None:
    queue = RequestQueue(writer)
    ask(writer, "checkpoint")
    queue.take(9)
    ask(writer, "evaluate")
    queue.close(9)
    assert outcomes(writer) == [
        ("evaluate", "refused", "the run is stopping"),
        ("checkpoint", "refused", "the run has ended"),
    ]
    assert RunReader(writer.path).pending_requests() == []
