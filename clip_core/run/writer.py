"""The trainer's side of a run directory."""

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from clip_core.errors import RunBusyError
from clip_core.files import finite, replacing
from clip_core.run import requests
from clip_core.run.lock import Lock
from clip_core.run.metrics import Kind, best_by
from clip_core.run.paths import RunPaths
from clip_core.run.records import HEARTBEAT_SECONDS, Pointer, Probe, Status
from clip_core.run.requests import Malformed, Outcome, Request


class RunWriter:
    """The only writer of a run directory while it holds the lock.

    Raises:
        RunBusyError: if another trainer has the directory.
    """

    def __init__(self, path: Path) -> None:
        self.paths = RunPaths(path)
        self.path = path
        for folder in (path, self.paths.checkpoints, self.paths.probes, self.paths.requests):
            folder.mkdir(parents=True, exist_ok=True)
        busy = f"another trainer is writing to {path}; stop it first, or choose another --run-dir."
        self._lock = Lock(self.paths.lock, RunBusyError(busy))
        self._status = Status(pid=os.getpid(), host=socket.gethostname(), started=time.time())
        self._metrics: IO[str] | None = None

    def close(self) -> None:
        if self._metrics:
            self._metrics.close()
        self._lock.close()

    # ------------------------------------------------------------ status and metrics

    def status(self, **changes: Any) -> None:
        """Replace status.json by the last status with `changes` and a fresh heartbeat."""
        self._status = self._status.model_copy(update=changes | {"heartbeat": time.time()})
        self._status.write(self.paths.status)

    def heartbeat(self, **changes: Any) -> None:
        """Say that the trainer lives, and how far it is, if it has not said so for a while."""
        if time.time() - self._status.heartbeat >= HEARTBEAT_SECONDS:
            self.status(**changes)

    def metric(self, kind: Kind, step: int, **values: Any) -> None:
        self._line(kind, step, values)

    def event(self, step: int, message: str, **values: Any) -> None:
        self._line("event", step, {"message": message, **values})

    def _line(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self._metrics is None:
            self._metrics = self.paths.metrics.open("a", encoding="utf-8")
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        self._metrics.write(json.dumps(finite(line), ensure_ascii=False) + "\n")
        self._metrics.flush()

    def forget_after(self, step: int) -> None:
        """Drop the metrics and probes later than `step`, and a torn last line, so that steps stay unique.

        The file is replaced by a new one, by which readers know that they must begin again.
        """
        if self._metrics:
            self._metrics.close()
            self._metrics = None
        if self.paths.metrics.exists():
            with replacing(self.paths.metrics) as beside, beside.open("w", encoding="utf-8") as kept:
                kept.writelines(line for line in _whole_lines(self.paths.metrics) if _step_of(line) <= step)
        for probe in self.paths.probes.glob("*.json"):
            if probe.stem.isdigit() and int(probe.stem) > step:
                probe.unlink()

    def probe(self, probe: Probe) -> None:
        probe.write(self.paths.probe(probe.step))

    def point_latest(self, checkpoint: str, step: int) -> None:
        """Let latest.json name a checkpoint."""
        Pointer(checkpoint=checkpoint, step=step).write(self.paths.latest)

    def point_best(self, checkpoint: str, step: int, scores: dict[str, float], blend: float | None = None) -> None:
        """Let best.json name a checkpoint, with what it was chosen by."""
        metric = best_by(scores).key if scores else None
        Pointer(checkpoint=checkpoint, step=step, metric=metric, scores=scores, blend=blend).write(self.paths.best)

    # ------------------------------------------------------------ requests

    def pending_requests(self) -> Iterator[Request | Malformed]:
        """The queue, oldest first."""
        return requests.pending(self.paths.requests)

    def acknowledge(self, request: Request | Malformed, step: int, outcome: Outcome, message: str) -> None:
        """Write what became of a request as an event, then take it out of the queue."""
        kind = request.kind if isinstance(request, Request) else None
        self.event(step, message, request=request.id, asked=kind, outcome=outcome)
        requests.remove(self.paths.requests, request.id)


def _whole_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as handle:
        yield from (line for line in handle if line.endswith("\n"))


def _step_of(line: str) -> int:
    try:
        step = json.loads(line).get("step", 0)
    except (ValueError, AttributeError):
        return 0
    return step if isinstance(step, int) else 0
