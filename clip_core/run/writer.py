"""The trainer's side of a run directory."""

import io
import json
import math
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol

from clip_core.errors import RunBusyError
from clip_core.files import append_regular, finite, open_regular, remove_unfinished, replacing
from clip_core.run import requests
from clip_core.run.lock import Lock
from clip_core.run.metrics import Kind, best_by
from clip_core.run.paths import RunPaths
from clip_core.run.reader import BLOCK, objects
from clip_core.run.records import HEARTBEAT_SECONDS, Pointer, Probe, Status
from clip_core.run.requests import Malformed, Outcome, Request

LAUNCHER = "CLIP_TRAIN_LAUNCHER"  # environment variable: the process that started those of a run, and ends them

_STEP = re.compile(rb'\{"kind": "\w+", "step": (\d+)')  # the beginning of a line, as written here


class Mirror(Protocol):
    """Receives each line of metrics too: the loggers of other programs."""

    def __call__(self, kind: str, step: int, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class RunWriter:
    """The only writer of a run directory while it holds the lock.

    Raises:
        RunBusyError: if another trainer holds the lock.
    """

    def __init__(self, path: Path) -> None:
        self.paths = RunPaths(path)
        self.path = path
        for folder in (path, self.paths.checkpoints, self.paths.probes, self.paths.requests):
            folder.mkdir(parents=True, exist_ok=True)
        busy = f"another trainer is writing to {path}; stop it first, or choose another --run-dir."
        self._lock = Lock(self.paths.lock, RunBusyError(busy))
        for folder in (path, self.paths.probes, self.paths.requests):
            remove_unfinished(folder)
        self._status = Status(
            pid=int(os.environ.get(LAUNCHER, os.getpid())), host=socket.gethostname(), started=time.time()
        )
        self.mirror: Mirror | None = None
        self._metrics: IO[str] | None = None
        self._writing = threading.RLock()  # heartbeats may come from a thread of their own
        self._stuck: set[str] = set()  # acknowledged requests whose file could not be removed

    def close(self) -> None:
        if self.mirror is not None:
            self.mirror.close()
        if self._metrics:
            self._metrics.close()
        self._lock.close()

    # ------------------------------------------------------------ status and metrics

    def status(self, **changes: Any) -> None:
        """Replace status.json by the last status with `changes` and a fresh heartbeat."""
        with self._writing:
            self._status = self._status.model_copy(update=changes | {"heartbeat": time.time()})
            self._status.write(self.paths.status)

    def heartbeat(self, **changes: Any) -> None:
        """Write a status if the last one is older than HEARTBEAT_SECONDS."""
        if time.time() - self._status.heartbeat >= HEARTBEAT_SECONDS:
            self.status(**changes)

    def metric(self, kind: Kind, step: int, **values: Any) -> None:
        """Append a line of measured values to metrics.jsonl; NaN and infinity become null."""
        self._line(kind, step, values)
        if self.mirror is not None:
            self.mirror(kind, step, values)

    def event(self, step: int, message: str, **values: Any) -> None:
        """Append an event. `pace="restart"` says that the run had stopped or paused until now."""
        self._line("event", step, {"message": message, **values})

    def _line(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self._metrics is None:  # a lone surrogate, as in a file name that is not UTF-8, becomes JSON's own \udc80
            handle = append_regular(self.paths.metrics)
            self._metrics = io.TextIOWrapper(handle, encoding="utf-8", errors="backslashreplace")
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        self._metrics.write(json.dumps(finite(line), ensure_ascii=False) + "\n")
        self._metrics.flush()

    def forget_after(self, step: int) -> None:
        """Drop the metrics and probes later than `step`, and a torn last line, so that steps stay unique.

        metrics.jsonl is replaced by a new file if a line is dropped; readers notice it and start again.
        """
        if self._metrics:
            self._metrics.close()
            self._metrics = None
        with suppress(FileNotFoundError), open_regular(self.paths.metrics) as handle:
            kept = sum(len(line) for line in _complete_lines(handle) if _step_of(line) <= step)
            if kept < os.fstat(handle.fileno()).st_size:
                handle.seek(0)
                with replacing(self.paths.metrics) as beside, beside.open("wb") as copy:
                    copy.writelines(line for line in _complete_lines(handle) if _step_of(line) <= step)
        for probe in self.paths.probes.glob("*.json"):
            if probe.stem.isdigit() and int(probe.stem) > step:
                probe.unlink()

    # ------------------------------------------------------------ probes and checkpoints

    def probe(self, probe: Probe) -> None:
        probe.write(self.paths.probe(probe.step))

    def point_latest(self, checkpoint: str, step: int) -> None:
        """Let latest.json name a checkpoint."""
        Pointer(checkpoint=checkpoint, step=step).write(self.paths.latest)

    def point_best(self, checkpoint: str, step: int, scores: dict[str, float], blend: float | None = None) -> None:
        """Let best.json name a checkpoint, with the metric that it was chosen by."""
        metric = best_by(scores).key if scores else None
        known = {key: value for key, value in scores.items() if math.isfinite(value)}
        Pointer(checkpoint=checkpoint, step=step, metric=metric, scores=known, blend=blend).write(self.paths.best)

    # ------------------------------------------------------------ requests

    def pending_requests(self) -> Iterator[Request | Malformed]:
        """The queue, oldest first."""
        return (request for request in requests.pending(self.paths.requests) if request.id not in self._stuck)

    def acknowledge(self, request: Request | Malformed, step: int, outcome: Outcome, message: str) -> None:
        """Write the outcome of a request as an event, then take it out of the queue."""
        kind = request.kind if isinstance(request, Request) else None
        self.event(step, message, request=request.id, asked=kind, outcome=outcome)
        if not requests.remove(self.paths.requests, request):
            self._stuck.add(request.id)


class SilentWriter(RunWriter):
    """The writer of every process but the first: the same calls, and nothing is written."""

    def __init__(self, path: Path) -> None:
        self.paths, self.path = RunPaths(path), path

    def close(self) -> None: ...

    def status(self, **changes: Any) -> None: ...

    def heartbeat(self, **changes: Any) -> None: ...

    def metric(self, kind: Kind, step: int, **values: Any) -> None: ...

    def _line(self, kind: str, step: int, values: dict[str, Any]) -> None: ...

    def forget_after(self, step: int) -> None: ...

    def probe(self, probe: Probe) -> None: ...

    def point_latest(self, checkpoint: str, step: int) -> None: ...

    def point_best(self, checkpoint: str, step: int, scores: dict[str, float], blend: float | None = None) -> None: ...

    def pending_requests(self) -> Iterator[Request | Malformed]:
        return iter(())

    def acknowledge(self, request: Request | Malformed, step: int, outcome: Outcome, message: str) -> None: ...


def _complete_lines(handle: BinaryIO) -> Iterator[bytes]:
    """The lines that readers accept: ended, and not longer than BLOCK."""
    begun = False
    while line := handle.readline(BLOCK):
        ended = line.endswith(b"\n")
        if ended and not begun:
            yield line
        begun = not ended


def _step_of(line: bytes) -> int:
    found = _STEP.match(line)
    if found:
        return int(found[1])
    step = next((row.get("step") for row in objects(line)), 0)
    return step if isinstance(step, int) else 0
