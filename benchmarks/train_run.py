"""Run the real clip-train in a process of its own and read what it measured."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from clip_core.run.metrics import quality
from clip_core.run.reader import RunReader

RECALLS = tuple(f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10))


def train(run: Path, *flags: str) -> list[dict[str, Any]]:
    """Train into `run` with these flags; returns its evaluations, oldest first."""
    command = [sys.executable, "-m", "clip_core.cli.train", "--run-dir", str(run), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [line for line in RunReader(run).all_lines() if line["kind"] == "eval"]


def best(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """The evaluation that best.json was chosen by."""
    return max(evaluations, key=quality)


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def header(*names: str) -> str:
    return row(*names) + "\n" + row(*("---" for _ in names))
