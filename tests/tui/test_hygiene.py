"""What the app promises about itself: it opens at once, and models live in other processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip_tui.actions import TABS
from tests.conftest import command_environment
from tests.terminal.terminal import Terminal

HEAVY = ("torch", "torchvision", "onnxruntime", "onnx", "matplotlib", "safetensors")

EVERYTHING = """
import importlib, pkgutil, sys
import clip_tui
for module in pkgutil.walk_packages(clip_tui.__path__, "clip_tui."):
    importlib.import_module(module.name)
print([name for name in {heavy!r} if name in sys.modules])
"""

LIGHT = """
import sys
import clip_tui.cli
print([name for name in ("textual", "PIL", "numpy", *{heavy!r}) if name in sys.modules])
"""

ONE_TOUR = """
import asyncio, sys
from pathlib import Path
from clip_tui.app import ClipApp

async def tour():
    app = ClipApp(Path(sys.argv[1]))
    async with app.run_test(size=(80, 24)) as pilot:
        app.open_run(Path(sys.argv[1]) / "live")
        for page in {pages!r}:
            app.action_go(page)
            await pilot.pause(0.3)
asyncio.run(tour())
print([name for name in {heavy!r} if name in sys.modules])
"""


def run_python(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=command_environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_module_of_the_app_imports_a_model_library() -> None:
    assert run_python(EVERYTHING.format(heavy=HEAVY)) == "[]"


def test_the_command_itself_imports_not_even_textual() -> None:
    assert run_python(LIGHT.format(heavy=HEAVY)) == "[]"


def test_a_tour_through_every_screen_imports_no_model_library(runs: Path) -> None:
    assert run_python(ONE_TOUR.format(heavy=HEAVY, pages=[tab.page for tab in TABS]), str(runs)) == "[]"


def test_help_comes_at_once() -> None:
    took = min(_seconds("--help") for _ in range(3))
    assert took < 0.5 * _slack()


def test_the_first_frame_comes_at_once(runs: Path) -> None:
    took = []
    for _ in range(3):
        began = time.perf_counter()
        with Terminal("clip_tui.cli", str(runs), cwd=runs) as terminal:
            terminal.wait_for("Runs")
            took.append(time.perf_counter() - began)
    assert min(took) < 0.7 * _slack()


def _seconds(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "clip_tui.cli", *arguments], env=command_environment(), capture_output=True, check=True
    )
    return time.perf_counter() - began


def _slack() -> float:
    """On a machine where other processes wait for the cores, everything takes longer."""
    return max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.mark.parametrize("arguments", [["--no-such-flag"], ["a", "b", "c"], ["demo", "--dir"]])
def test_a_mistake_on_the_command_line_is_one_sentence(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clip_tui.cli", *arguments],
        env=command_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("clip-tui: ")
    assert len(done.stderr.strip().splitlines()) == 1
