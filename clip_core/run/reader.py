"""Anyone's side of a run directory: reads only what is whole, in bounded memory."""

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clip_core.files import read_json
from clip_core.run import requests
from clip_core.run.lock import is_locked
from clip_core.run.paths import META, RunPaths
from clip_core.run.records import STALLED_AFTER, Pointer, Probe, RunRecord, State, Status, ValidationPairs
from clip_core.run.requests import Malformed, Request, RequestKind

BLOCK = 4 * 2**20  # bytes of metrics.jsonl read at once
_LOG_LINE = 400  # bytes, about


class Lines(NamedTuple):
    """Some lines of metrics.jsonl.

    `restarted`: the file is another one than at the last call, as after a resume; what was read before no longer holds.
    `more`: there is more to be read now.
    """

    rows: list[dict[str, Any]]
    restarted: bool
    more: bool


@dataclass
class RunReader:
    """A run directory; `new_lines` gives each line of metrics.jsonl once."""

    path: Path
    _offset: int = field(default=0, repr=False)
    _inode: int = field(default=0, repr=False)

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    # ------------------------------------------------------------ what the run is and does

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
        """What the run does, from the lock, the pid and the age of the heartbeat."""
        status = status or self.status()
        if status is None:
            return State.STARTING if is_locked(self.paths.lock) else State.KILLED
        return state_of(status)

    def export_status(self) -> tuple[State, Status] | None:
        """What the run's export does or did, or None where there was none."""
        status = Status.find(self.paths.export_status)
        return (state_of(status), status) if status else None

    # ------------------------------------------------------------ metrics and probes

    def new_lines(self, limit: int = BLOCK) -> Lines:
        """Whole lines of metrics.jsonl that were not given yet, from at most `limit` bytes (or one longer line)."""
        try:
            with self.paths.metrics.open("rb") as handle:
                facts = os.fstat(handle.fileno())
                restarted = bool(self._inode) and (facts.st_ino != self._inode or facts.st_size < self._offset)
                if restarted:
                    self._offset = 0
                self._inode = facts.st_ino
                handle.seek(self._offset)
                block = handle.read(limit)
                while block and b"\n" not in block and len(block) % limit == 0:
                    more = handle.read(limit)
                    if not more:
                        break
                    block += more
        except OSError:
            return Lines([], restarted=False, more=False)
        whole = block[: block.rfind(b"\n") + 1]
        self._offset += len(whole)
        rows = list(objects(whole))
        return Lines(rows, restarted, more=bool(whole) and self._offset < facts.st_size)

    def all_lines(self) -> Iterator[dict[str, Any]]:
        """Every line that was not given yet, one after another."""
        more = True
        while more:
            rows, _, more = self.new_lines()
            yield from rows

    def probes(self) -> list[Path]:
        """Probe files, oldest first."""
        return sorted(self.paths.probes.glob("[0-9]*.json"))

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
        """The last lines of train.log."""
        try:
            with self.paths.log.open("rb") as handle:
                handle.seek(0, os.SEEK_END)
                handle.seek(max(0, handle.tell() - _LOG_LINE * lines))
                return handle.read().decode("utf-8", "replace").splitlines()[-lines:]
        except OSError:
            return []

    def ask(self, kind: RequestKind) -> Request:
        """Append a request to the trainer's queue; its acknowledgement is an event of the same id."""
        return requests.submit(self.paths.requests, kind)

    def pending_requests(self) -> list[Request | Malformed]:
        """Requests that the trainer has not acknowledged yet, oldest first."""
        return list(requests.pending(self.paths.requests))


def state_of(status: Status) -> State:
    """A status as it stands now: a process that is gone was killed, one without a heartbeat has stalled."""
    if not status.state.alive:
        return status.state
    if status.host == socket.gethostname() and not _process_lives(status.pid):
        return State.KILLED
    return State.STALLED if time.time() - status.heartbeat > STALLED_AFTER else status.state


def objects(lines: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines; what is damaged is left out."""
    for line in lines.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _process_lives(pid: int) -> bool:
    """Whether a process runs under this pid; a zombie does not count."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] != "Z"
