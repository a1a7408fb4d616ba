"""The project's commands as a user can type them in the current directory."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_MODULES = {
    "clip-tui": "clip_tui.cli",
    "clip-train": "clip_core.cli.train",
    "clip-infer": "clip_core.cli.infer",
    "clip-export": "export.cli",
}


def ours(name: str) -> list[str]:
    """The command by its name if the shell finds it, by its path if it is beside this Python, else as a module."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if found is not None and (not beside.exists() or Path(found).samefile(beside)):
        return [name]
    if beside.exists():
        return [near(beside)]
    return [near(Path(sys.executable)), "-m", _MODULES[name]]


def near(path: Path) -> str:
    """A path as one types it: relative to the working directory if it is below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def spelt(arguments: Sequence[str]) -> str:
    """A command that can be pasted into a shell."""
    return shlex.join(arguments)
