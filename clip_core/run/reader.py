"""The reader's side of a run directory: complete lines and files only, in bounded memory."""

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clip_core.files import open_regular, process_lives, read_json
from clip_core.run import requests
from clip_core.run.lock import is_locked
from clip_core.run.paths import META, RunPaths
from clip_core.run.records import STALLED_AFTER, Flags, Pointer, Probe, RunRecord, State, Status, ValidationPairs
from clip_core.run.requests import Malformed, Request, RequestKind

BLOCK = 2**20  # bytes of metrics.jsonl read at once; a longer line is skipped
_COMPARED = 256  # bytes: more than the time and the step in a line
_LOG_LINE = 400  # bytes, about
_decode = json.JSONDecoder().raw_decode  # a third faster than json.loads


class Lines(NamedTuple):
    """Some lines of metrics.jsonl.

    `restarted`: the file was replaced since the last call, as a resume does; earlier lines are no longer valid.
    `more`: more can be read now.
    """

    rows: list[dict[str, Any]]
    restarted: bool
    more: bool


@dataclass
class RunReader:
    """A run directory; `new_lines` returns each line of metrics.jsonl once."""

    path: Path
    _offset: int = field(default=0, repr=False)
    _before: bytes = field(default=b"", repr=False)  # the bytes before the offset, to notice another file
    _inside_long_line: bool = field(default=False, repr=False)

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    # ------------------------------------------------------------ status and configuration

    def record(self) -> RunRecord:
        """config.json.

        Raises:
            RunError: if there is none, or it cannot be read.
        """
        return RunRecord.read(self.paths.config)

    def status(self) -> Status | None:
        """status.json as written, or None where there is none yet."""
        return Status.find(self.paths.status)

    def state(self, status: Status | None = None) -> State:
        """The state of the run, from the lock, the process id and the age of the heartbeat."""
        status = status or self.status()
        if status is None:
            return State.STARTING if is_locked(self.paths.lock) else State.KILLED
        return state_of(status)

    def export_status(self) -> tuple[State, Status] | None:
        """The state and status of the last export, or None where there was none."""
        status = Status.find(self.paths.export_status)
        return (state_of(status), status) if status else None

    # ------------------------------------------------------------ metrics and probes

    def new_lines(self, limit: int = BLOCK) -> Lines:
        """Complete lines of metrics.jsonl that were not returned yet, from the next `limit` bytes.

        A line longer than `limit` is skipped, and so is one that is not a JSON object.
        """
        try:
            with open_regular(self.paths.metrics) as handle:
                size = os.fstat(handle.fileno()).st_size
                handle.seek(self._offset - len(self._before))
                restarted = handle.read(len(self._before)) != self._before
                if restarted:
                    self._offset, self._inside_long_line = 0, False
                    handle.seek(0)
                block = handle.read(limit)
        except OSError:
            return Lines([], restarted=False, more=False)
        end = block.rfind(b"\n") + 1
        start = block.find(b"\n") + 1 if self._inside_long_line else 0
        if end:
            self._inside_long_line = False
        elif len(block) == limit:
            self._inside_long_line, end = True, limit
            start = limit
        consumed = block[:end]
        self._offset += end
        self._before = consumed[-_COMPARED:] if restarted else (self._before + consumed[-_COMPARED:])[-_COMPARED:]
        return Lines(objects(consumed[start:]), restarted, more=bool(end) and self._offset < size)

    def all_lines(self) -> Iterator[dict[str, Any]]:
        """Every complete line that was not returned yet."""
        more = True
        while more:
            rows, _, more = self.new_lines()
            yield from rows

    def probes(self) -> list[Path]:
        """Probe files, oldest first."""
        return sorted(path for path in self.paths.probes.glob("[0-9]*.json") if path.stem.isdecimal())

    def probe(self, path: Path | None = None) -> Probe | None:
        """A probe, by default the last one."""
        path = path or next(reversed(self.probes()), None)
        return Probe.find(path) if path else None

    def validation_pairs(self) -> ValidationPairs:
        """validation.json.

        Raises:
            RunError: if there is none, or it cannot be read.
        """
        return ValidationPairs.read(self.paths.validation)

    # ------------------------------------------------------------ checkpoints and the bundle

    def best(self) -> Pointer | None:
        """best.json: the best checkpoint, with its step, its scores and what it was chosen by."""
        return Pointer.find(self.paths.best)

    def latest(self) -> Pointer | None:
        return Pointer.find(self.paths.latest)

    def chosen_checkpoint(self) -> Path | None:
        """The checkpoint that is queried and exported: the best, else the latest; None if neither is there."""
        for pointer in (self.best(), self.latest()):
            folder = self.paths.checkpoints / Path(pointer.checkpoint).name if pointer else None
            if folder is not None and (folder / META).is_file():
                return folder
        return None

    def bundle_source(self) -> tuple[str, int] | None:
        """The checkpoint's name and step that the run's bundle was exported from; None where there is no bundle."""
        source = (read_json(self.paths.bundle_manifest) or {}).get("source")
        if not isinstance(source, dict) or not isinstance(source.get("step"), int):
            return None
        return str(source.get("checkpoint", "")), source["step"]

    def stale_bundle(self) -> str | None:
        """`bundle of step 1020, best checkpoint is step 1374`, or None where the bundle is the best checkpoint."""
        source, best = self.bundle_source(), self.best()
        if source is None or best is None or source[0] == best.checkpoint:
            return None
        return f"bundle of step {source[1]}, best checkpoint is step {best.step}"

    # ------------------------------------------------------------ log and requests

    def log_tail(self, lines: int = 200) -> list[str]:
        """The last lines of train.log, from at most about 400 bytes per line."""
        try:
            with open_regular(self.paths.log) as handle:
                handle.seek(0, os.SEEK_END)
                handle.seek(max(0, handle.tell() - _LOG_LINE * lines))
                return handle.read(_LOG_LINE * lines).decode("utf-8", "replace").splitlines()[-lines:]
        except OSError:
            return []

    def ask(self, kind: RequestKind, value: float | None = None) -> Request:
        """Append a request to the trainer's queue; its acknowledgement is an event of the same id.

        Args:
            value: the learning rate, for `learning_rate`.
        """
        return requests.submit(self.paths.requests, kind, value)

    def flags(self) -> Flags:
        """The pairs that were flagged as bad; none where there is no flags.json.

        Raises:
            RunError: if it cannot be read.
        """
        return Flags.read(self.paths.flags) if os.path.lexists(self.paths.flags) else Flags(pairs=[])

    def toggle_flag(self, image: str, caption: str) -> Flags:
        """Flag a pair as bad in flags.json, or take its flag away; returns the flags now.

        Raises:
            RunError: if there is a flags.json that cannot be read.
            OSError: if it cannot be written.
        """
        flags = self.flags().toggled(image, caption)
        flags.write(self.paths.flags)
        return flags

    def change_flags(self, pairs: Iterable[tuple[str, str]], *, flag: bool) -> Flags:
        """Flag pairs (image, caption) as bad in flags.json, or take their flags away; returns the flags now.

        Raises:
            RunError: if there is a flags.json that cannot be read.
            OSError: if it cannot be written.
        """
        flags = self.flags().changed(pairs, flag=flag)
        flags.write(self.paths.flags)
        return flags

    def pending_requests(self) -> list[Request | Malformed]:
        """Requests that the trainer has not acknowledged yet, oldest first."""
        return list(requests.pending(self.paths.requests))


def state_of(status: Status) -> State:
    """The state now: a process that no longer exists was killed, one without a recent heartbeat has stalled."""
    if not status.state.alive:
        return status.state
    if status.host == socket.gethostname() and not process_lives(status.pid):
        return State.KILLED
    return State.STALLED if time.time() - status.heartbeat > STALLED_AFTER else status.state


def objects(lines: bytes) -> list[dict[str, Any]]:
    """The JSON objects among the lines; damaged lines are skipped."""
    found = []
    for line in lines.decode("utf-8", "replace").split("\n"):
        text = line.strip()
        try:
            value, end = _decode(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and end == len(text):
            found.append(value)
    return found
