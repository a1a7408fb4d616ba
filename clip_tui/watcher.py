"""What is known of a run at one moment, read from its directory; runs in a thread, never on the event loop."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_core.errors import RunError
from clip_core.run.curve import Bucket, Curve
from clip_core.run.paths import find_runs
from clip_core.run.reader import RunReader
from clip_core.run.records import State, Status

RECALL = ("image_to_text_recall@1", "text_to_image_recall@1")
EVENTS_KEPT = 200
PACE_LINES = 20
_NOT_CURVES = frozenset({"kind", "step", "time", "epoch", "seconds", "train_seconds", "logit_scale", "chance"})


@dataclass(frozen=True)
class Snapshot:
    """One moment of a run. Everything in it that is text may be hostile: make it printable before showing it."""

    path: Path
    state: State
    status: Status | None = None
    curves: Mapping[str, Sequence[Bucket]] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)  # the last line of kind train
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # the last line of kind eval
    system: Mapping[str, Any] = field(default_factory=dict)
    best_recall: float | None = None
    events: Sequence[str] = ()
    log: Sequence[str] = ()
    probe: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    pace: float | None = None  # steps a second, lately
    exit_code: int | None = None  # of a trainer that this app started and that has ended

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def step(self) -> int:
        return self.status.step if self.status else 0

    @property
    def share(self) -> float:
        """How much of the run is done, in [0, 1]."""
        return min(1.0, self.step / self.status.steps) if self.status and self.status.steps else 0.0


class RunWatch:
    """Follows one run directory; every call of `refresh` reads only what is new."""

    def __init__(self, path: Path) -> None:
        self.reader = RunReader(path)
        self._curves: dict[str, Curve] = {}
        self._shown: dict[str, Sequence[Bucket]] = {}
        self._last: dict[str, dict[str, Any]] = {}
        self._events: list[str] = []
        self._best: float | None = None
        self._marks: deque[tuple[float, int]] = deque(maxlen=PACE_LINES)  # when each step was reported
        self._config: dict[str, Any] | None = None
        self._probe: tuple[Path | None, Mapping[str, Any] | None] = (None, None)

    def refresh(self, *, starting: bool = False, exit_code: int | None = None, log_lines: int = 200) -> Snapshot:
        """The run as it stands.

        Args:
            starting: whether a trainer started by this app lives that has not written a status yet.
            exit_code: of a trainer started by this app that has ended.
        """
        self._read_metrics()
        status = self.reader.status()
        state = self.reader.state(status)
        if starting and not state.alive:
            state, status = State.STARTING, None
        return Snapshot(
            path=self.reader.path,
            state=state,
            status=status,
            curves=dict(self._shown),
            train=self._last.get("train", {}),
            evaluation=self._last.get("eval", {}),
            system=self._last.get("system", {}),
            best_recall=self._best,
            events=tuple(self._events),
            log=self.reader.log_tail(log_lines) if log_lines else (),
            probe=self._read_probe(),
            config=self._read_config(),
            pace=self._pace(),
            exit_code=exit_code,
        )

    def _read_metrics(self) -> None:
        lines = self.reader.new_metrics()
        touched: set[str] = set()
        for line in lines:
            kind = str(line.get("kind"))
            step = line.get("step")
            if not isinstance(step, int):
                continue
            if kind == "event":
                self._events.append(f"step {step}: {line.get('message', '')}")
                continue
            self._last[kind] = line
            if kind == "train" and _is_number(line.get("time")):
                self._marks.append((float(line["time"]), step))
            for name, value in line.items():
                if name not in _NOT_CURVES and _is_number(value):
                    self._curves.setdefault(name, Curve()).add(step, float(value))
                    touched.add(name)
            self._note_best(line)
        del self._events[:-EVENTS_KEPT]
        self._shown |= {name: tuple(self._curves[name].buckets) for name in touched}

    def _note_best(self, line: dict[str, Any]) -> None:
        values = [line[name] for name in RECALL if _is_number(line.get(name))]
        if values:
            self._best = max(self._best or 0.0, sum(values) / len(values))

    def _pace(self) -> float | None:
        if len(self._marks) < 2:
            return None
        (began, first), (ended, last) = self._marks[0], self._marks[-1]
        return (last - first) / (ended - began) if ended > began and last > first else None

    def _read_probe(self) -> Mapping[str, Any] | None:
        newest = next(reversed(self.reader.probes()), None)
        if newest != self._probe[0]:
            self._probe = (newest, self.reader.probe(newest))
        return self._probe[1]

    def _read_config(self) -> dict[str, Any] | None:
        if self._config is None:
            try:
                self._config = self.reader.config()
            except RunError:
                return None
        return self._config


class RunsWatch:
    """Follows every run below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._watches: dict[Path, RunWatch] = {}

    def refresh(self, also: Sequence[Path] = ()) -> list[Snapshot]:
        """All runs, latest first; `also` are runs just started that may not be recognisable yet."""
        found = find_runs(self.root) if self.root.is_dir() else []
        paths = [path for path in also if path not in found] + found
        self._watches = {path: self._watches.get(path) or RunWatch(path) for path in paths}
        return [watch.refresh(starting=path in also, log_lines=0) for path, watch in self._watches.items()]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
