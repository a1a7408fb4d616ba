"""Imports: the app never loads a model library, and the command alone not even textual."""

import subprocess
import sys
from pathlib import Path

from clip_tui.actions import TABS
from tests.conftest import command_environment

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
