"""Starts the trainer and the export as processes of their own session, so that they outlive the terminal."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_core.config import SECTIONS, TrainConfig, flag
from clip_core.errors import RunError

Process = subprocess.Popen[bytes]

TRAIN = "clip_core.cli.train"
EXPORT = "export.cli"


def to_flags(config: TrainConfig) -> list[str]:
    """The flags of clip-train that say what `config` says, leaving out what is the default anyway."""
    flags: list[str] = []
    for section in SECTIONS:
        values = getattr(config, section)
        for name, field in type(values).model_fields.items():
            value = getattr(values, name)
            if value != field.default:
                flags += _spell(name, value)
    return flags


def _spell(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    return [flag(name), str(value)]


def start_trainer(run_dir: Path, flags: Sequence[str], *, resume: bool = False) -> Process:
    """Start clip-train on `run_dir`; everything it prints goes to RUN/train.log.

    Raises:
        RunError: if the directory cannot be made.
    """
    how = ["--resume"] if resume else []
    return _start(TRAIN, [*flags, "--run-dir", str(run_dir), *how], run_dir / "train.log")


def start_export(run_dir: Path) -> Process:
    """Start clip-export of a run to RUN/bundle; everything it prints goes to RUN/export.log, anew each time."""
    log = run_dir / "export.log"
    log.unlink(missing_ok=True)
    return _start(EXPORT, [str(run_dir), "--force"], log)


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
