"""One export in progress: its lock, its status and its log.

An export into its run's folder (RUN/bundle, RUN/hf, RUN/open_clip) has RUN/.export.lock, RUN/export.json and
RUN/export.log. An export into any other folder has a lock in the user's cache, and neither status nor log.
"""

import hashlib
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from clip_core.errors import RunBusyError, UsageError
from clip_core.files import append_regular, cache_folder
from clip_core.run.lock import Lock
from clip_core.run.paths import META, RunPaths, is_run
from clip_core.run.records import HEARTBEAT_SECONDS, State, Status
from clip_core.text import printable
from export.output_folder import recover

BUNDLE_FOLDER = RunPaths(Path()).bundle.name  # the default of a bundle, in the run

Say = Callable[[str], None]


def silent(line: str) -> None:
    """A `say` that prints nothing."""


class ExportJob:
    """Holds the lock from `with` to the end of the block; a thread writes the heartbeat.

    Args:
        source: run directory, checkpoint folder or published weights.
        out: the folder to write; None: the folder `name` in the run.
        say: called with each line for the user.
    Raises:
        RunBusyError: on entering, if another process exports into the same place.
    """

    def __init__(self, source: Path, out: Path | None, name: str, say: Say = silent) -> None:
        self.source = source
        self.run = run_of(source)
        self._out = self.run / name if out is None and self.run else out
        self.named = out is not None  # by the user, not by default
        self._say = say
        inside = self.run is not None and self._out is not None and _same(self._out.parent, self.run)
        self._paths = RunPaths(self.run) if self.run and inside else None
        self._lock: Lock | None = None
        self._log: TextIO | None = None
        self._status = Status(pid=os.getpid(), host=socket.gethostname(), started=time.time())
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="export heartbeat", daemon=True)

    @property
    def out(self) -> Path:
        """The folder that the export becomes.

        Raises:
            UsageError: if neither --out nor a run says where that is.
        """
        if self._out is None:
            raise UsageError(f"{self.source} belongs to no run; name the folder of the export with --out.")
        return self._out

    def __enter__(self) -> Self:
        if self._out is None:
            return self
        self._lock = self._take_lock(self._out)
        try:
            recover(self._out)
            if self._paths:
                self._log = _open_log(self._paths.export_log)
                self._update(state=State.STARTING, message="loading the model")
                self._heart.start()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        try:
            if self._paths and self._lock:
                state, sentence = _outcome(error)
                if sentence:
                    self._write_log(f"clip-export: {sentence}")
                self._update(state=state, error=sentence, message=None)
        finally:
            if self._log:
                self._log.close()
            if self._lock:
                self._lock.close()

    def now(self, message: str, step: int | None = None) -> None:
        """Say what is being done, here and in the status.

        Args:
            step: of the checkpoint that is exported, once it is known.
        """
        if self._paths:
            changes = {} if step is None else {"step": step}
            self._update(state=State.RUNNING, message=message, **changes)
        self.say(f"{message} ...")

    def say(self, text: str) -> None:
        """Show a text to the user and append it to the log."""
        self._write_log(text)
        self._say(text)

    def say_notes(self, notes: Sequence[str]) -> None:
        """Show what was assumed or ignored in published weights."""
        for note in notes:
            self.say(f"note: {note}")

    def _take_lock(self, out: Path) -> Lock:
        busy = RunBusyError(f"another process is exporting to {out}; wait until it ends, or stop it.")
        if self._paths:
            running = Status.find(self._paths.export_status)
            pid = f" (process {running.pid})" if running and running.state.alive else ""
            busy = RunBusyError(f"another process{pid} is exporting {self.run}; wait until it ends, or stop it.")
            return Lock(self._paths.export_lock, busy)
        locks = cache_folder() / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:32]
        return Lock(locks / f"{name}.lock", busy)  # never removed: a lock file that is may be held twice

    def _update(self, **changes: Any) -> None:
        assert self._paths is not None
        with self._writing:
            self._status = self._status.model_copy(update=changes | {"heartbeat": time.time()})
            self._status.write(self._paths.export_status)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with self._writing:
                if self._ended.is_set() or self._paths is None:
                    return
                self._status = self._status.model_copy(update={"heartbeat": time.time()})
                self._status.write(self._paths.export_status)

    def _write_log(self, text: str) -> None:
        if self._log:
            self._log.write("\n".join(printable(line) for line in text.split("\n")) + "\n")


def run_of(source: Path) -> Path | None:
    """The run that `source` is, or is a checkpoint of; None for anything else."""
    if is_run(source):
        return source
    above = source.parent.parent
    return above if (source / META).is_file() and is_run(above) else None


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _open_log(path: Path) -> TextIO | None:
    """The log, emptied; None where what this process prints goes into it already."""
    try:
        if os.path.samestat(os.fstat(1), path.stat()):
            return None
    except OSError:
        pass
    handle = append_regular(path)
    handle.truncate(0)
    return io.TextIOWrapper(handle, encoding="utf-8", errors="replace", line_buffering=True)


def _outcome(error: BaseException | None) -> tuple[State, str | None]:
    if error is None:
        return State.FINISHED, None
    if not isinstance(error, Exception):  # KeyboardInterrupt, or SystemExit after a signal
        return State.STOPPED, None
    return State.FAILED, printable(str(error)) or type(error).__name__
