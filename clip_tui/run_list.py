"""The list of runs: what a user says about each, its trend, filter and order, what a deletion removes."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from clip_core.errors import RunError
from clip_core.files import open_regular
from clip_core.run.metrics import best_by
from clip_core.run.paths import META, RunPaths
from clip_core.run.reader import objects
from clip_core.run.records import Label
from clip_tui.screens.dialogs import fuzzy
from clip_tui.watcher import Snapshot, Trainer, list_runs

Order = Literal["latest", "name", "best", "state"]
ORDERS: tuple[Order, ...] = get_args(Order)

TREND = 12  # values
_WHOLE = 128 * 1024  # bytes of a metrics file that are read whole; of a longer one samples are
_SAMPLE = 4096  # bytes
_TRENDS_AT_ONCE = 100  # read in one refresh; the others come with the next
_BLOCKS = "▁▂▃▄▅▆▇█"
_DELETED = ".clip-tui-deleted-"  # hidden, so that it is no run of a list

_SECONDS = 1.0  # between two refreshes while a run trains
_IDLE_SECONDS = 5.0
_SHARE, _IDLE_SHARE = 0.04, 0.004  # of a core that refreshing takes at most


@dataclass(frozen=True)
class Item:
    """One run of the list."""

    snapshot: Snapshot
    label: Label
    trend: tuple[float, ...] = ()

    @property
    def path(self) -> Path:
        return self.snapshot.path

    @property
    def name(self) -> str:
        return self.label.name or self.snapshot.name


class RunList:
    """The runs below a directory; reads again only when it is time or something changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._trends: dict[Path, tuple[int, tuple[float, ...]]] = {}
        self._read_at = 0.0
        self._pause = 0.0
        self._stamp = 0.0
        self._complete = False

    def is_due(self) -> bool:
        """Whether the runs should be read: a directory appeared or went, or the last reading is old enough."""
        return not self._complete or self._changed() or time.monotonic() - self._read_at >= self._pause

    def read(self, trainers: Mapping[Path, Trainer]) -> list[Item]:
        """Every run, latest first."""
        began = time.monotonic()
        self._stamp = _modified(self.root)
        snapshots = list_runs(self.root, trainers)
        left = _TRENDS_AT_ONCE
        items = []
        self._complete = True
        for snapshot in snapshots:
            size = _size(RunPaths(snapshot.path).metrics)
            known = self._trends.get(snapshot.path)
            if (known is None or known[0] != size) and left > 0:
                left -= 1
                self._trends[snapshot.path] = known = (size, trend_of(RunPaths(snapshot.path).metrics))
            self._complete = self._complete and known is not None
            label = Label.find(RunPaths(snapshot.path).label) or Label()
            items.append(Item(snapshot, label, known[1] if known else ()))
        self._read_at = time.monotonic()
        taken, alive = self._read_at - began, any(item.snapshot.state.alive for item in items)
        self._pause = max(_SECONDS, taken / _SHARE) if alive else max(_IDLE_SECONDS, taken / _IDLE_SHARE)
        return items

    def _changed(self) -> bool:
        return _modified(self.root) != self._stamp

    def read_soon(self) -> None:
        """What was read is no longer so."""
        self._complete = False


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def trend_of(metrics: Path) -> tuple[float, ...]:
    """The training loss over the run in at most TREND values, from samples of a long file."""
    try:
        with open_regular(metrics) as handle:
            size = os.fstat(handle.fileno()).st_size
            if size <= _WHOLE:
                losses = _losses(handle.read(_WHOLE))
                stride = max(1, -(-len(losses) // TREND))
                return tuple(losses[index] for index in range(len(losses) - 1, -1, -stride))[::-1]
            found = []
            for part in range(TREND):
                handle.seek(part * (size - _SAMPLE) // (TREND - 1))
                losses = _losses(handle.read(_SAMPLE))
                found += losses[len(losses) // 2 :][:1]
            return tuple(found)
    except OSError:
        return ()


def _losses(block: bytes) -> list[float]:
    rows = (row for row in objects(block) if row.get("kind") == "train")
    return [float(row["loss"]) for row in rows if isinstance(row.get("loss"), int | float)]


def sparkline(values: Sequence[float]) -> str:
    """A block a value, the largest highest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int((value - low) / span * len(_BLOCKS)))] for value in values)


# ---------------------------------------------------------------- filter and order


def arranged(items: Sequence[Item], typed: str, order: Order) -> list[Item]:
    """The runs that a filter leaves: pinned ones first, then by the order; a filter puts the best match first."""
    words = [f"{item.name} {item.snapshot.state.value} {item.label.note}" for item in items]
    kept = [items[index] for index in fuzzy(typed, words)]
    if not typed.strip():
        kept.sort(key=_KEYS[order])
    return sorted(kept, key=lambda item: not item.label.pinned)


def _best(item: Item) -> float:
    best = item.snapshot.best
    return best.scores.get(best_by(best.scores).key, -1.0) if best else -1.0


_KEYS: dict[Order, Callable[[Item], tuple[object, ...]]] = {
    "latest": lambda item: (0,),  # as they were found
    "name": lambda item: (item.name.casefold(),),
    "best": lambda item: (-_best(item),),
    "state": lambda item: (not item.snapshot.state.alive, item.snapshot.state.value),
}


# ---------------------------------------------------------------- deletion


def contents(run: Path) -> str:
    """What a deletion removes: `214 files, 32.1 MB: 3 checkpoints, the bundle`."""
    files, size = 0, 0
    for folder, _, names in os.walk(run):
        for name in names:
            with suppress(OSError):
                size += (Path(folder) / name).lstat().st_size
            files += 1
    paths = RunPaths(run)
    checkpoints = sum(1 for _ in paths.checkpoints.glob(f"*/{META}"))
    parts = [f"{checkpoints} checkpoint{'' if checkpoints == 1 else 's'}"]
    parts += ["the bundle"] if paths.bundle.exists() else []
    return f"{files:,} files, {size / 2**20:,.1f} MB: {', '.join(parts)}"


def set_aside(run: Path) -> Path:
    """Hide a run directory, so that it can be brought back; returns where it is.

    Raises:
        RunError: if it cannot be moved.
    """
    aside = run.with_name(f"{_DELETED}{os.getpid()}-{run.name}")
    try:
        if aside.exists():
            shutil.rmtree(aside)
        run.rename(aside)
    except OSError as error:
        raise RunError(f"{run} cannot be deleted ({error.strerror}); check the permissions of its folder.") from None
    return aside


def bring_back(aside: Path, run: Path) -> None:
    """Raises: RunError."""
    try:
        if run.exists():
            raise RunError(f"{run} exists again; the deleted one is still at {aside}.")
        aside.rename(run)
    except OSError as error:
        raise RunError(f"{run} cannot be brought back ({error.strerror}).") from None


def left_aside(root: Path) -> list[Path]:
    """What apps that no longer run had deleted and not erased yet."""
    found = []
    for path in root.glob(f"{_DELETED}*"):
        owner = path.name.removeprefix(_DELETED).partition("-")[0]
        if owner.isdigit() and not path.is_symlink() and not _lives(int(owner)):
            found.append(path)
    return found


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
