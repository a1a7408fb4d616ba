import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_core.run.reader import RunReader
from clip_core.run.requests import REQUESTS, Malformed, Request, RequestKind, pending, remove, submit
from clip_core.run.writer import RunWriter
from tests.conftest import command_environment

SUBMITTER = """
import sys
from pathlib import Path
from clip_core.run.requests import submit
for line in sys.stdin:
    kind = line.strip()
    print(submit(Path(sys.argv[1]), kind, 1e-3 if kind == 'learning_rate' else None).id, flush=True)
"""


class Submitter:
    """Another process that appends to the queue."""

    def __init__(self, folder: Path) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", SUBMITTER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=command_environment(),
        )  # fmt: skip

    def ask(self, *kinds: RequestKind) -> list[str]:
        """Submit requests, and wait until they are in the queue; returns their ids."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write("".join(kind + "\n" for kind in kinds))
        self.child.stdin.flush()
        return [self.child.stdout.readline().strip() for _ in kinds]


def test_requests_of_several_processes_are_seen_in_order_and_none_is_lost(tmp_path: Path) -> None:
    numbers = itertools.count()
    root = tmp_path / "now"
    processes = [Submitter(root) for _ in range(3)]

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(REQUESTS)), max_size=12), st.integers(0, 12))
    def check(submits: list[tuple[int, RequestKind]], served_before: int) -> None:
        queue = tmp_path / f"queue{next(numbers)}"
        queue.mkdir()
        root.unlink(missing_ok=True)
        root.symlink_to(queue)
        made: list[tuple[str, str]] = []
        served: list[tuple[str, str]] = []
        for number, (process, kind) in enumerate(submits):
            value = 1e-3 if kind == "learning_rate" else None
            ids = [submit(root, kind, value).id] if process == 3 else processes[process].ask(kind)
            made += [(id, kind) for id in ids]
            if number == served_before:
                served += serve(queue)
        served += serve(queue)
        assert served == made
        assert list(queue.iterdir()) == []

    try:
        check()
    finally:
        for process in processes:
            process.child.communicate()


def serve(folder: Path) -> list[tuple[str, str]]:
    """Take every request out of the queue."""
    served = []
    for request in list(pending(folder)):
        assert isinstance(request, Request)
        served.append((request.id, request.kind))
        assert remove(folder, request)
    return served


def test_requests_at_the_same_time_are_all_seen_once(tmp_path: Path) -> None:
    processes = [Submitter(tmp_path) for _ in range(3)]
    for process in processes:
        assert process.child.stdin is not None
        process.child.stdin.write("pause\n" * 100)
        process.child.stdin.flush()
    served: list[tuple[str, str]] = []
    while any(process.child.poll() is None for process in processes):
        served += serve(tmp_path)
        for process in processes:
            assert process.child.stdin is not None
            process.child.stdin.close()
    served += serve(tmp_path)
    made = [line for process in processes if process.child.stdout for line in process.child.stdout.read().split()]
    assert sorted(id for id, _ in served) == sorted(made)
    assert len(made) == 300


def make_malformed(folder: Path) -> dict[bytes, str]:
    """One of each kind of entry that is not a request: name -> why it is refused."""
    target = folder.parent / "target.json"
    target.write_text('{"request": "stop"}')
    files: dict[bytes, tuple[bytes, str]] = {
        b"half.json": (b'{"request": "st', "not JSON"),
        b"empty.json": (b"", "not JSON"),
        b"list.json": (b'["stop"]', "not a JSON object"),
        b"nullid.json": (b'{"id": null, "request": "stop"}', "id is not its file name"),
        b"otherid.json": (b'{"id": "7", "request": "stop"}', "id is not its file name"),
        b"unknown.json": (b'{"request": "rm -rf"}', "not one of pause"),
        b"object.json": (b'{"request": {"a": []}}', "not one of pause"),
        b"none.json": (b"{}", "not one of pause"),
        b"time.json": (b'{"request": "stop", "time": NaN}', "time is not a number"),
        b"huge-time.json": (b'{"request": "stop", "time": "1"}', "time is not a number"),
        b"deep.json": (b'{"request": ' + b"[" * 4000, "not JSON"),
        b"long.json": (b'{"request": "stop"}' + b" " * 10_000, "longer than"),
        b"binary.json": (b"\xff\xfe\x00", "not JSON"),
        b"stop": (b'{"request": "stop"}', "does not end in .json"),
        b"name\xff.json": (b"{}", "not one of pause"),
        b"x" * 240 + b".json": (b"{}", "not one of pause"),
    }
    for name, (content, _) in files.items():
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(content)  # noqa: PTH118
    (folder / "folder.json").mkdir()
    (folder / "full.json").mkdir()
    (folder / "full.json" / "file").write_text("mine")
    os.mkfifo(folder / "fifo.json")
    (folder / "link.json").symlink_to(target)
    (folder / "dangling.json").symlink_to(folder / "nowhere")
    found = {name: why for name, (_, why) in files.items()}
    found |= dict.fromkeys((b"folder.json", b"full.json", b"fifo.json"), "not a readable file")
    return found | dict.fromkeys((b"link.json", b"dangling.json"), "it is a link")


def test_malformed_entries_are_reported_acknowledged_and_removed(tmp_path: Path) -> None:
    writer, reader = RunWriter(tmp_path / "run"), RunReader(tmp_path / "run")
    expected = make_malformed(writer.paths.requests)
    asked = reader.ask("checkpoint")
    found = {os.fsencode(entry.id): entry for entry in writer.pending_requests() if isinstance(entry, Malformed)}
    assert found.keys() == expected.keys()
    for name, why in expected.items():
        assert why in found[name].why
    assert reader.pending_requests()[:1] == [asked]  # names of requests begin with digits
    for entry in list(writer.pending_requests()):
        writer.acknowledge(entry, 1, "done" if isinstance(entry, Request) else "invalid", "acknowledged")
    assert list(writer.pending_requests()) == []
    lines = [json.loads(line) for line in writer.paths.metrics.read_text("utf-8").splitlines()]
    assert {line["request"] for line in lines} == {asked.id, *(os.fsdecode(name) for name in expected)}
    assert (writer.path / "target.json").exists()
    assert len(list(writer.paths.requests.glob(".rejected-*/file"))) == 1  # nothing of a user's is deleted
    writer.close()


def test_a_request_is_acknowledged_by_an_event_before_it_leaves_the_queue(writer: RunWriter) -> None:
    reader = RunReader(writer.path)
    asked = reader.ask("evaluate")
    writer.metric("train", 1, loss=1.0)
    writer.paths.metrics.unlink()
    writer.paths.metrics.mkdir()  # so that the event cannot be written by the next writer
    writer.close()
    again = RunWriter(writer.path)
    with pytest.raises(OSError, match="directory"):
        again.acknowledge(asked, 1, "done", "evaluated")
    assert reader.pending_requests() == [asked]
    writer.paths.metrics.rmdir()
    again.acknowledge(asked, 1, "done", "evaluated")
    assert reader.pending_requests() == []
    (line,) = reader.all_lines()
    assert (line["request"], line["asked"], line["outcome"]) == (asked.id, "evaluate", "done")
    again.close()


def test_an_acknowledged_request_that_cannot_be_removed_is_not_served_again(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = RunReader(writer.path).ask("evaluate")

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(path)

    with monkeypatch.context() as context:  # a read-only folder does not stop root
        context.setattr(Path, "unlink", refuse)
        context.setattr(Path, "rename", refuse)
        writer.acknowledge(asked, 1, "done", "evaluated")
    assert list(writer.pending_requests()) == []
    writer.close()


def test_a_queue_that_does_not_exist_is_empty() -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert list(pending(Path(folder) / "requests")) == []


def test_a_request_written_by_a_shell_is_accepted(tmp_path: Path) -> None:
    script = 'echo \'{"request": "stop"}\' > .new && mv .new "$(date +%s%N)-$$-0.json"'
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
    (request,) = pending(tmp_path)
    assert isinstance(request, Request)
    assert request.kind == "stop"


def test_a_learning_rate_is_requested_with_its_value_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    submit(tmp_path, "learning_rate", 3e-4)
    for number, value in enumerate(("1e-3", 0, 2, None, True, float("nan"))):
        (tmp_path / f"bad-{number}.json").write_text(json.dumps({"request": "learning_rate", "value": value}))
    first, *others = pending(tmp_path)
    assert isinstance(first, Request)
    assert (first.kind, first.value) == ("learning_rate", 3e-4)
    assert [other.why for other in others if isinstance(other, Malformed)] == [
        "its value is not a learning rate above 0 and at most 1"
    ] * 6
