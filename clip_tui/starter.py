"""Starts trainer, export and data check as processes of their own session, so that they outlive the terminal."""

import inspect
import json
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clip_core.config import SECTIONS, DataConfig, TrainConfig
from clip_core.errors import RunError
from clip_core.files import append_regular
from clip_core.flags import spell
from clip_core.run.lock import is_locked
from clip_core.run.paths import RunPaths
from clip_core.run.reader import RunReader
from clip_core.run.records import State, Status

Process = subprocess.Popen[bytes]

TRAIN = "clip_core.cli.train"
EXPORT = "export.cli"
CHECK = "clip_core.cli.data"
_CHECK_FLAGS = ("val_file", "format", "image_root", "image_column", "caption_column", "class_template")
PREVIEW = "clip_core.training.preview"
PREVIEW_SECONDS = 120.0


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


def preview(values: Mapping[str, Any]) -> dict[str, Any]:
    """What would be chosen automatically for a configuration; blocks for seconds, so it belongs in a thread.

    Args:
        values: sections of a configuration, as parse_config takes them.
    Returns:
        `values`, `reasons` and `about`, or `error`: see clip_core/training/preview.py.
    """
    command = [sys.executable, "-m", PREVIEW]
    try:
        done = subprocess.run(
            command, input=json.dumps(values, default=str), capture_output=True, text=True, timeout=PREVIEW_SECONDS,
            start_new_session=True, check=False,
        )  # fmt: skip
        result = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"the data were not read within {PREVIEW_SECONDS:.0f} s; training reads them without a limit."}
    except (OSError, ValueError, IndexError) as error:
        return {"error": f"the preview did not run ({error})."}
    return result if isinstance(result, dict) else {"error": "the preview sent no answer."}


def start_trainer(run_dir: Path, flags: Sequence[str], *, resume: bool = False) -> Process:
    """Start clip-train on `run_dir`; everything it prints goes to RUN/train.log.

    Raises:
        RunError: if the directory cannot be made; of a run that is resumed, if it is not there any more.
    """
    if resume:
        _refuse_gone(run_dir)
    how = ["--resume"] if resume else []
    return _start(TRAIN, [*flags, "--run-dir", str(run_dir), *how], RunPaths(run_dir).log)


def can_choose_precisions() -> bool:
    """Whether this clip-export has --precision."""
    from export.cli import export  # imports no model library

    return "precision" in inspect.signature(export).parameters


def can_bench() -> bool:
    """Whether this clip-export has the command bench."""
    from export.cli import app

    return "bench" in list(app)


def start_bench(run_dir: Path) -> Process:
    """Start clip-export bench on the run's bundle; everything it prints goes to RUN/export.log, after what is there.

    Raises:
        RunError: if the run is gone or being exported, or the log cannot be written.
    """
    paths = RunPaths(run_dir)
    _refuse_gone(run_dir)
    if is_exporting(run_dir):
        raise RunError(f"{run_dir} is being exported; measure the bundle when that has ended.")
    return _start(EXPORT, ["bench", str(paths.bundle)], paths.export_log)


def start_export(run_dir: Path, precisions: Sequence[str] = ()) -> Process:
    """Start clip-export of a run to RUN/bundle; everything it prints goes to RUN/export.log, which is emptied first.

    Args:
        precisions: variants of the bundle; none leaves the choice to clip-export.
    Raises:
        RunError: if the run is gone or being exported already, or the log cannot be written.
    """
    log = RunPaths(run_dir).export_log
    _refuse_gone(run_dir)
    if is_exporting(run_dir):
        raise RunError(f"{run_dir} is being exported already; wait for it to end, its log is {log}.")
    with suppress(OSError):
        log.unlink(missing_ok=True)
    chosen = ["--precision", *precisions] if precisions else []
    process = _start(EXPORT, [str(run_dir), "--force", *chosen], log)
    with suppress(OSError):  # until it has read its libraries and writes its own, so that no second one is started
        now = time.time()
        status = Status(state=State.STARTING, pid=process.pid, host=socket.gethostname(), started=now, heartbeat=now)
        status.write(RunPaths(run_dir).export_status)
    return process


def start_check(run_dir: Path, data: DataConfig) -> Process:
    """Start clip-data check of a run's data; it writes RUN/findings.jsonl, and what it prints to RUN/check.log.

    Raises:
        RunError: if the run is gone, or the log cannot be written.
    """
    paths = RunPaths(run_dir)
    _refuse_gone(run_dir)
    with suppress(OSError):
        paths.check_log.unlink(missing_ok=True)
    flags = [word for name in _CHECK_FLAGS if (value := getattr(data, name)) is not None for word in spell(name, value)]
    flags += ["--stream"] if data.stream else []
    return _start(CHECK, ["check", str(data.data_file), *flags, "--findings", str(paths.findings)], paths.check_log)


def is_exporting(run_dir: Path) -> bool:
    """Whether an export of this run is running, whoever started it."""
    status = RunReader(run_dir).export_status()
    return is_locked(RunPaths(run_dir).export_lock) or (status is not None and status[0].alive)


def _refuse_gone(run_dir: Path) -> None:
    """The log of a process would make a directory that was deleted anew, empty."""
    if not run_dir.is_dir():
        raise RunError(f"{run_dir} was deleted or moved; there is nothing left to work on.")


def _start(module: str, arguments: Sequence[str], log: Path) -> Process:
    command = [sys.executable, "-u", "-m", module, *arguments]
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with append_regular(log) as out:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise RunError(f"cannot write {log} ({error.strerror}); choose another run directory.") from None
