"""The run directory: all that passes between a trainer and everyone who watches it.

runs/NAME/
  config.json     schema, config, resolved, model, git, versions, seed
  status.json     see Status; replaced at every heartbeat
  metrics.jsonl   one object a line: {"kind": "train" | "eval" | "system" | "event", "step": n, "time": t, ...}
  probes/STEP.json, control.json, train.log, checkpoints/, latest.json, best.json, tokenizer.json
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Literal, get_args

from clip_core.errors import RunBusyError, RunError
from clip_core.files import finite, write_json

HEARTBEAT_SECONDS = 2.0
STALLED_AFTER = 30.0  # seconds without a heartbeat

MetricKind = Literal["train", "eval", "system", "event"]
Request = Literal["pause", "resume", "stop", "checkpoint", "evaluate"]
REQUESTS: tuple[Request, ...] = get_args(Request)


class State(StrEnum):
    """What a run is doing, as a person should be told; STALLED and DEAD are concluded by the reader."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    STALLED = "stalled"
    DEAD = "dead"

    @property
    def alive(self) -> bool:
        return self in (State.STARTING, State.RUNNING, State.PAUSED, State.STALLED)


@dataclass(frozen=True)
class Status:
    state: State = State.STARTING
    pid: int = 0
    host: str = ""
    step: int = 0
    steps: int = 0
    epoch: int = 0
    epochs: int = 0
    heartbeat: float = 0.0
    started: float = 0.0
    error: str | None = None


class RunWriter:
    """The trainer's side: the only writer of a run directory while it holds the lock.

    Raises:
        RunBusyError: if another trainer has the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        for folder in ("checkpoints", "probes"):
            (path / folder).mkdir(exist_ok=True)
        self._lock = _lock(path)
        self._status = Status(pid=os.getpid(), host=socket.gethostname(), started=time.time())
        self._metrics: IO[str] | None = None
        self._control_seen = _control_id(path)

    def close(self) -> None:
        if self._metrics:
            self._metrics.close()
        self._lock.close()

    def write_config(self, values: dict[str, Any]) -> None:
        write_json(self.path / "config.json", values)

    def status(self, **changes: Any) -> None:
        """Replace status.json by the last status with `changes` and a fresh heartbeat."""
        values = asdict(self._status) | changes | {"heartbeat": time.time()}
        self._status = Status(**values)
        write_json(self.path / "status.json", values)

    def heartbeat(self, **changes: Any) -> None:
        """Say that the trainer lives, and how far it is, if it has not said so for a while."""
        if time.time() - self._status.heartbeat >= HEARTBEAT_SECONDS:
            self.status(**changes)

    def metric(self, kind: MetricKind, step: int, **values: Any) -> None:
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        self._metrics.write(json.dumps(finite(line), ensure_ascii=False) + "\n")
        self._metrics.flush()

    def event(self, step: int, message: str, **values: Any) -> None:
        self.metric("event", step, message=message, **values)

    def forget_after(self, step: int) -> None:
        """Drop the metrics and probes later than `step`, and a torn last line, so that steps stay unique."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = [line for line in whole_lines(path) if _step_of(line) <= step]
            path.with_suffix(".tmp").write_text("".join(kept), encoding="utf-8")
            path.with_suffix(".tmp").replace(path)
        for probe in (self.path / "probes").glob("*.json"):
            if probe.stem.isdigit() and int(probe.stem) > step:
                probe.unlink()

    def probe(self, step: int, values: dict[str, Any]) -> None:
        write_json(self.path / "probes" / f"{step:07d}.json", values)

    def point(self, name: Literal["latest", "best"], checkpoint: str, **values: Any) -> None:
        """Let latest.json or best.json name a checkpoint."""
        write_json(self.path / f"{name}.json", {"checkpoint": checkpoint, **values})

    def request(self) -> Request | None:
        """A reader's request not seen before, or None."""
        seen = _control_id(self.path)
        if seen is None or seen == self._control_seen:
            return None
        self._control_seen = seen
        return next((request for request in REQUESTS if request == seen[1]), None)


@dataclass
class RunReader:
    """Anyone's side. Reads only what is whole; `new_metrics` gives each line once."""

    path: Path
    _offset: int = field(default=0, repr=False)

    @property
    def name(self) -> str:
        return self.path.name

    def status(self) -> Status | None:
        """status.json as written, or None where there is none yet."""
        values = _read_json(self.path / "status.json")
        if values is None:
            return None
        known: dict[str, Any] = {f.name: values[f.name] for f in fields(Status) if f.name in values}
        try:
            return Status(**known | {"state": State(known["state"])})
        except (KeyError, TypeError, ValueError):
            return None

    def state(self, status: Status | None = None) -> State:
        """What to tell a person, from the pid and the age of the heartbeat."""
        status = status or self.status()
        if status is None:
            return State.STARTING if _is_locked(self.path) else State.DEAD
        if not status.state.alive:
            return status.state
        if status.host == socket.gethostname() and not _process_lives(status.pid):
            return State.DEAD
        return State.STALLED if time.time() - status.heartbeat > STALLED_AFTER else status.state

    def config(self) -> dict[str, Any]:
        """config.json.

        Raises:
            RunError: if there is none, or it is not JSON.
        """
        values = _read_json(self.path / "config.json")
        if values is None:
            raise RunError(f"{self.path} is not a run directory: it has no readable config.json.")
        return values

    def new_metrics(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl that came since the last call; starts again if the file shrank."""
        path = self.path / "metrics.jsonl"
        try:
            if path.stat().st_size < self._offset:
                self._offset = 0
            with path.open("rb") as handle:
                handle.seek(self._offset)
                block = handle.read()
        except FileNotFoundError:
            return []
        whole = block[: block.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(_objects(whole.decode("utf-8", "replace").splitlines()))

    def probes(self) -> list[Path]:
        """Probe files, oldest first."""
        return sorted((self.path / "probes").glob("[0-9]*.json"))

    def probe(self, path: Path | None = None) -> dict[str, Any] | None:
        """A probe, by default the last one."""
        path = path or next(reversed(self.probes()), None)
        return _read_json(path) if path else None

    def pointer(self, name: Literal["latest", "best"]) -> Path | None:
        """The checkpoint folder that latest.json or best.json names, if it is there."""
        values = _read_json(self.path / f"{name}.json")
        folder = self.path / "checkpoints" / Path(str(values.get("checkpoint", ""))).name if values else None
        return folder if folder and (folder / "meta.json").is_file() else None

    def log_tail(self, lines: int = 200) -> list[str]:
        """The last lines of train.log."""
        try:
            with (self.path / "train.log").open("rb") as handle:
                handle.seek(0, os.SEEK_END)
                handle.seek(max(0, handle.tell() - 400 * lines))
                return handle.read().decode("utf-8", "replace").splitlines()[-lines:]
        except FileNotFoundError:
            return []

    def ask(self, request: Request) -> None:
        """Leave a request for the trainer."""
        write_json(self.path / "control.json", {"request": request, "id": time.time_ns()})

    @property
    def bundle(self) -> Path:
        """Where clip-export writes this run's bundle unless told otherwise."""
        return self.path / "bundle"


def find_runs(root: Path, depth: int = 3) -> list[Path]:
    """Run directories below `root` (or `root` itself), latest first."""
    if is_run(root):
        return [root]
    found: list[Path] = []
    folders = [root]
    for _ in range(depth):
        below = [d for f in folders for d in _subfolders(f)]
        found += [d for d in below if is_run(d)]
        folders = [d for d in below if not is_run(d)]
    return sorted(found, key=lambda d: _time_of(d), reverse=True)


def is_run(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def whole_lines(path: Path) -> Iterator[str]:
    """Lines of a file that end in a newline."""
    with path.open(encoding="utf-8", errors="replace") as handle:
        yield from (line for line in handle if line.endswith("\n"))


def _subfolders(path: Path) -> list[Path]:
    try:
        return [d for d in path.iterdir() if d.is_dir() and not d.name.startswith(".")]
    except OSError:
        return []


def _time_of(run: Path) -> float:
    status = run / "status.json"
    return (status if status.exists() else run / "config.json").stat().st_mtime


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _objects(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _step_of(line: str) -> int:
    return next((int(v.get("step", 0)) for v in _objects([line])), 0)


def _control_id(path: Path) -> tuple[int, str] | None:
    values = _read_json(path / "control.json")
    return (int(values.get("id", 0)), str(values.get("request"))) if values else None


def _lock(path: Path) -> IO[str]:
    """Hold the run's lock for as long as the returned file is open; the kernel lets go when the process dies."""
    handle = (path / ".lock").open("a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise RunBusyError(
            f"another trainer is writing to {path}; stop it first, or choose another --run-dir."
        ) from None
    return handle


def _is_locked(path: Path) -> bool:
    try:
        with (path / ".lock").open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _process_lives(pid: int) -> bool:
    """Whether a process runs under this pid; a zombie does not count."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] != "Z"
