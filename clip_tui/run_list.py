"""The list of runs: what a user says about each, its trend, filter and order, what a deletion removes."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from rich.cells import cell_len, set_cell_size

from clip_core.errors import RunError
from clip_core.files import open_regular, process_lives
from clip_core.run.metrics import best_by
from clip_core.run.paths import META, RunPaths
from clip_core.run.reader import objects
from clip_core.run.records import Label
from clip_tui.screens.dialogs import fuzzy
from clip_tui.watcher import Snapshot, Trainer, list_runs, overview

Order = Literal["latest", "name", "best", "state"]
ORDERS: tuple[Order, ...] = get_args(Order)

TREND = 12  # values
_WHOLE = 128 * 1024  # bytes of a metrics file that are read whole; of a longer one samples are
_SAMPLE = 4096  # bytes
_TRENDS_AT_ONCE = 100  # read in one refresh; the others come with the next
_BLOCKS = "▁▂▃▄▅▆▇█"
_DELETED = ".clip-tui-deleted-"  # hidden, so that it is no run of a list

_SECONDS = 1.0  # between two readings while a run trains
_IDLE_SECONDS = 5.0
_LONGEST = 30.0
_SHARE, _IDLE_SHARE = 0.04, 0.004  # of a core that reading all of them takes at most


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
    """The runs below a directory. All are read again when it is time or a directory came or went; those that train,
    every second.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._items: list[Item] = []
        self._trends: dict[Path, tuple[int, tuple[float, ...]]] = {}
        self._all_at = self._alive_at = -1e9  # when they were read last
        self._pause = 0.0
        self._stamp = 0.0
        self.complete = False  # every trend was read

    def is_due(self) -> bool:
        """Whether anything should be read."""
        alive = any(item.snapshot.state.alive for item in self._items)
        return not self.complete or self._all_due() or (alive and time.monotonic() - self._alive_at >= _SECONDS)

    def _all_due(self) -> bool:
        return time.monotonic() - self._all_at >= self._pause or _modified(self.root) != self._stamp

    def read(self, trainers: Mapping[Path, Trainer]) -> list[Item]:
        """Every run, latest first; the first time without trends, so that there is a list at once."""
        first = not self._items
        if self._all_due():
            began = time.thread_time()
            self._stamp = _modified(self.root)
            self._items = [_labelled(snapshot) for snapshot in list_runs(self.root, trainers)]
            alive = any(item.snapshot.state.alive for item in self._items)
            share, least = (_SHARE, _SECONDS) if alive else (_IDLE_SHARE, _IDLE_SECONDS)
            self._pause = min(_LONGEST, max(least, (time.thread_time() - began) / share))
            self._all_at = time.monotonic()
        else:
            self._items = [
                replace(item, snapshot=overview(item.path, trainers.get(item.path)))
                if item.snapshot.state.alive
                else item
                for item in self._items
            ]
        self._alive_at = time.monotonic()
        self._read_trends(0 if first else _TRENDS_AT_ONCE)
        return self._items

    def _read_trends(self, left: int) -> None:
        """The trends of files that grew, only so many at once."""
        self.complete = True
        for row, item in enumerate(self._items):
            size = _size(RunPaths(item.path).metrics)
            known = self._trends.get(item.path)
            if (known is None or known[0] != size) and left > 0:
                left -= 1
                known = self._trends[item.path] = (size, trend_of(RunPaths(item.path).metrics))
            self.complete = self.complete and known is not None
            self._items[row] = replace(item, trend=known[1] if known else ())

    def read_soon(self) -> None:
        """What was read is no longer so."""
        self._pause = 0.0


def _labelled(snapshot: Snapshot) -> Item:
    return Item(snapshot, Label.find(RunPaths(snapshot.path).label) or Label())


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


def shortened(name: str, width: int) -> str:
    """A name or a path in so many columns, cut in its middle: runs of a sweep differ at the end."""
    if cell_len(name) <= width:
        return name
    begin, size = set_cell_size(name, (width - 1) // 3).rstrip(), len(name)
    end = next((name[at:] for at in range(size) if cell_len(name[at:]) <= width - 1 - cell_len(begin)), "")
    return f"{begin}…{end}"


# ---------------------------------------------------------------- filter and order


def arranged(items: Sequence[Item], typed: str, order: Order) -> list[Item]:
    """The runs that a filter leaves: pinned ones first, then by the order; a filter puts the best match first."""
    words = [" ".join((item.label.name, item.snapshot.name, item.snapshot.state, item.label.note)) for item in items]
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
    parts += ["the bundle"] if paths.bundle_manifest.exists() else []
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
        if owner.isdigit() and not path.is_symlink() and not process_lives(int(owner)):
            found.append(path)
    return found
