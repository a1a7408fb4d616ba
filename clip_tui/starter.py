"""Starts the trainer and the export as processes of their own session, so that they outlive the terminal."""

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from clip_core.config import SECTIONS, TrainConfig, spell
from clip_core.errors import RunError
from clip_core.run.lock import is_locked
from clip_core.run.paths import RunPaths
from clip_core.run.reader import RunReader
from clip_core.run.records import State, Status

Process = subprocess.Popen[bytes]

TRAIN = "clip_core.cli.train"
EXPORT = "export.cli"


def to_flags(config: TrainConfig) -> list[str]:
    """`config` as flags of clip-train, without those that have their default."""
    flags: list[str] = []
    for section in SECTIONS:
        values = getattr(config, section)
        for name, field in type(values).model_fields.items():
            value = getattr(values, name)
            if value != field.default:
                flags += spell(name, value)
    return flags


def start_trainer(run_dir: Path, flags: Sequence[str], *, resume: bool = False) -> Process:
    """Start clip-train on `run_dir`; everything it prints goes to RUN/train.log.

    Raises:
        RunError: if the directory cannot be made.
    """
    how = ["--resume"] if resume else []
    return _start(TRAIN, [*flags, "--run-dir", str(run_dir), *how], RunPaths(run_dir).log)


def start_export(run_dir: Path) -> Process:
    """Start clip-export of a run to RUN/bundle; everything it prints goes to RUN/export.log, which is emptied first.

    Raises:
        RunError: if an export of this run is running already, or the log cannot be written.
    """
    log = RunPaths(run_dir).export_log
    if is_exporting(run_dir):
        raise RunError(f"{run_dir} is being exported already; wait for it to end, its log is {log}.")
    with suppress(OSError):
        log.unlink(missing_ok=True)
    process = _start(EXPORT, [str(run_dir), "--force"], log)
    with suppress(OSError):  # until it has read its libraries and writes its own, so that no second one is started
        now = time.time()
        status = Status(state=State.STARTING, pid=process.pid, host=socket.gethostname(), started=now, heartbeat=now)
        status.write(RunPaths(run_dir).export_status)
    return process


def is_exporting(run_dir: Path) -> bool:
    """Whether an export of this run is running, whoever started it."""
    status = RunReader(run_dir).export_status()
    return is_locked(RunPaths(run_dir).export_lock) or (status is not None and status[0].alive)


def _start(module: str, arguments: Sequence[str], log: Path) -> Process:
    command = [sys.executable, "-u", "-m", module, *arguments]
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise RunError(f"cannot write {log} ({error.strerror}); choose another run directory.") from None
