"""What is known of a run at one moment, read from its directory; runs in a thread, never on the event loop."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clip_core.errors import RunError
from clip_core.run.curve import Points
from clip_core.run.history import Event, History
from clip_core.run.metrics import lookup
from clip_core.run.paths import find_runs, is_run
from clip_core.run.reader import RunReader
from clip_core.run.records import Label, Pointer, Probe, RunRecord, State, Status
from clip_core.run.requests import Malformed, Request

READ_SECONDS = 0.4  # of reading metrics in one refresh; a long file takes several
_SETTLED_NS = 2 * 10**9  # since the last change of a directory; within them another may have the same time
_LOG_OF_A_FAILED_START = 20  # lines, of which the last one that is not empty is the error


class Trainer(NamedTuple):
    """A trainer that this app started; `exit_code` is None while it runs."""

    pid: int
    exit_code: int | None


@dataclass(frozen=True)
class Snapshot:
    """One moment of a run. Everything in it that is text may be hostile: make it printable before showing it."""

    path: Path
    state: State
    status: Status | None = None
    error: str | None = None  # why it failed
    curves: Mapping[str, Points] = field(default_factory=dict)
    times: Points | None = None  # of the train lines, in seconds since 1970
    train: Mapping[str, Any] = field(default_factory=dict)  # the last line of kind train
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # the last line of kind eval
    system: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True  # all metrics were read; False while a long file is still being read
    best: Pointer | None = None  # the best checkpoint, with its step and its scores
    resumable: bool = False  # it has a checkpoint to resume from
    events: Sequence[Event] = ()
    pending: Sequence[Request | Malformed] = ()  # requests that the trainer has not acknowledged yet
    log: Sequence[str] = ()
    probe: Probe | None = None
    probe_steps: Sequence[int] = ()  # of all evaluations that have a probe
    record: RunRecord | None = None
    problem: str | None = None  # why config.json cannot be read, where there is one
    stale_bundle: str | None = None  # `bundle of step 1020, best checkpoint is step 1374`
    export: tuple[State, Status] | None = None  # what the run's export does or did
    pace: float | None = None  # steps a second, lately
    exit_code: int | None = None  # of a trainer that this app started and that has ended
    gone: bool = False  # its directory was deleted or moved
    called: str = ""  # the name that the user gave it

    @property
    def name(self) -> str:
        return self.called or self.path.name

    @property
    def step(self) -> int:
        return self.status.step if self.status else 0

    @property
    def share(self) -> float:
        """How much of the run is done, in [0, 1]."""
        return min(1.0, self.step / self.status.steps) if self.status and self.status.steps else 0.0

    def value(self, key: str) -> float | None:
        """The last value of a metric, or None if it has not been measured."""
        for line in (self.train, self.evaluation, self.system):
            value = line.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return value
        return None


def best_text(best: Pointer | None) -> str | None:
    """`mean recall 18.4% @1020`: what the best checkpoint was chosen by, its value there, and its step."""
    if best is None:
        return None
    if best.metric is None or best.metric not in best.scores:
        return f"@{best.step}"
    metric = lookup(best.metric)
    return f"{metric.label} {metric.text(best.scores[best.metric])} @{best.step}"


# Of runs that have ended, by directory: when it changed last, and what was read then. Every file that an overview shows
# is replaced by renaming, which changes the directory.
_overviews: dict[Path, tuple[int, Snapshot]] = {}


def overview(path: Path, trainer: Trainer | None = None) -> Snapshot:
    """A run without its metrics: what a list of many runs shows. The same object while nothing changed."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = 0
    known = _overviews.get(path)
    if known is not None and trainer is None and known[0] == changed:
        return known[1]
    snapshot = _read_overview(path, trainer)
    _overviews.pop(path, None)
    settled = changed and time.time_ns() - changed > _SETTLED_NS
    if settled and trainer is None and snapshot.status is not None and not snapshot.status.state.alive:
        _overviews[path] = changed, snapshot
    return snapshot


def _read_overview(path: Path, trainer: Trainer | None) -> Snapshot:
    reader = RunReader(path)
    state, status, error = _condition(reader, trainer)
    return Snapshot(
        path, state, status, error, best=reader.best(), resumable=reader.latest() is not None,
        exit_code=trainer.exit_code if trainer else None, gone=_is_gone(path, state),
    )  # fmt: skip


def _condition(reader: RunReader, trainer: Trainer | None) -> tuple[State, Status | None, str | None]:
    """State, status and error. A run that ended before it wrote a status has failed; its log says why."""
    status = reader.status()
    if trainer is not None and trainer.exit_code is None and (status is None or status.pid != trainer.pid):
        return State.STARTING, None, None
    state = reader.state(status)
    if status is not None:
        return state, status, status.error
    if reader.paths.status.exists() and not state.alive:
        return State.FAILED, None, f"{reader.paths.status} cannot be read; the log has how the run ended"
    if state.alive or not reader.paths.log.is_file():
        return state, None, None
    said = reader.log_tail(_LOG_OF_A_FAILED_START)
    return State.FAILED, None, next((line for line in reversed(said) if line.strip()), "it ended without a message")


def _is_gone(path: Path, state: State) -> bool:
    return state is not State.STARTING and not path.exists()  # a trainer that starts has yet to make it


class RunWatch:
    """Follows one run directory; every call of `refresh` reads only what is new."""

    def __init__(self, path: Path) -> None:
        self.reader = RunReader(path)
        self._history = History(self.reader)
        self._record: RunRecord | None = None
        self._problem: str | None = None
        self._probe: tuple[Path | None, Probe | None] = (None, None)
        self._last: tuple[object, Snapshot] | None = None  # of a run that has ended
        self._was_there = False  # the directory

    def refresh(self, trainer: Trainer | None = None, *, log_lines: int = 200) -> Snapshot:
        """The run as it stands; the same object while nothing changes in the directory of a run that has ended.

        Args:
            trainer: the trainer that this app started for the run, if it did.
        """
        stamps = self._stamps(trainer)
        if self._last is not None and self._last[0] == stamps:
            return self._last[1]
        snapshot = self._read(trainer, log_lines)
        newest = max((stamp for stamp, _ in stamps[:-1]), default=0)
        exporting = snapshot.export is not None and snapshot.export[0].alive  # its process may die without a word
        ended = not (snapshot.state.alive or exporting) and snapshot.complete
        ended = ended and time.time_ns() - newest > _SETTLED_NS
        self._last = (stamps, snapshot) if ended else None
        return snapshot

    def _stamps(self, trainer: Trainer | None) -> tuple[tuple[int, object], ...]:
        """When each file that a snapshot shows was changed, and its size; at the end the trainer."""
        paths, stamps = self.reader.paths, []
        for path in (paths.root, paths.metrics, paths.log, paths.requests, paths.probes, paths.bundle):
            try:
                status = path.stat()
                stamps.append((status.st_mtime_ns, status.st_size))
            except OSError:
                stamps.append((0, -1))
        return (*stamps, (0, trainer))

    def _read(self, trainer: Trainer | None, log_lines: int) -> Snapshot:
        reader, history = self.reader, self._history
        history.refresh(READ_SECONDS)
        state, status, error = _condition(reader, trainer)
        gone = _is_gone(reader.path, state) or (self._was_there and not reader.path.exists())
        if gone and state is State.STARTING:  # its trainer lives, until it writes the next file
            state = State.KILLED
        self._was_there = not gone and reader.path.exists()
        probes = reader.probes()
        return Snapshot(
            path=reader.path,
            state=state,
            status=status,
            error=error,
            curves=history.curves(),
            times=history.times(),
            train=history.last.get("train", {}),
            evaluation=history.last.get("eval", {}),
            system=history.last.get("system", {}),
            complete=history.complete,
            best=reader.best(),
            resumable=reader.latest() is not None,
            events=tuple(history.events),
            pending=tuple(reader.pending_requests()),
            log=reader.log_tail(log_lines),
            probe=self._read_probe(probes),
            probe_steps=tuple(int(path.stem) for path in probes),
            record=self._read_record(),
            problem=self._problem,
            stale_bundle=reader.stale_bundle(),
            export=reader.export_status(),
            pace=history.steps_per_second(),
            exit_code=trainer.exit_code if trainer else None,
            gone=gone,
            called=Label.called(reader.path),
        )

    def _read_probe(self, probes: Sequence[Path]) -> Probe | None:
        newest = probes[-1] if probes else None
        if newest != self._probe[0]:
            self._probe = (newest, self.reader.probe(newest))
        return self._probe[1]

    def _read_record(self) -> RunRecord | None:
        if self._record is None:
            try:
                self._record, self._problem = self.reader.record(), None
            except RunError as error:
                self._problem = str(error) if self.reader.paths.config.exists() else None
        return self._record


def list_runs(root: Path, trainers: Mapping[Path, Trainer]) -> list[Snapshot]:
    """Every run below a directory, latest first, and before them those of this app that left no run directory."""
    found = find_runs(root, known=_overviews) if root.is_dir() else []
    listed = set(found)
    for path in _overviews.keys() - listed:
        _overviews.pop(path, None)
    found += _failed_starts(root, listed)
    unlisted = [path for path in reversed(list(trainers)) if path not in found]
    return [overview(path, trainers.get(path)) for path in (*unlisted, *found)]


def _failed_starts(root: Path, runs: Collection[Path]) -> list[Path]:
    """Directories in which a trainer was started and ended before it wrote a status; they hold only its log."""
    logs = (RunReader(folder).paths.log for folder in sorted(root.glob("*")) if folder not in runs)
    return [log.parent for log in logs if log.is_file() and not is_run(log.parent)]
