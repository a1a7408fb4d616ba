"""What the Pilot tests share: the screen as text, and waiting for it to say something."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from clip_tui.app import ClipApp

SECONDS = 20.0


def screen_text(app: ClipApp) -> str:
    """The characters of the screen in front, a line a row."""
    return "\n".join(strip_text(strip) for strip in app.screen._compositor.render_strips())


def strip_text(strip: Any) -> str:
    return "".join(segment.text for segment in strip)


async def until(pilot: Pilot[None], condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Let the app work until the condition holds."""
    app = pilot.app
    assert isinstance(app, ClipApp)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not come to be within {seconds} s; the screen:\n{screen_text(app)}")
        await pilot.pause(0.02)


async def says(pilot: Pilot[None], words: str, seconds: float = SECONDS) -> None:
    """Wait until the screen shows the words."""
    app = pilot.app
    assert isinstance(app, ClipApp)
    await until(pilot, lambda: words in screen_text(app), seconds)


async def opened(pilot: Pilot[None], run: Path, page: str) -> ClipApp:
    """The app with a run open and read, on a screen."""
    app = pilot.app
    assert isinstance(app, ClipApp)
    await pilot.pause()
    app.open_run(run, page)
    await until(pilot, lambda: app.snapshot is not None and app.snapshot.record is not None)
    await pilot.pause()
    return app


async def at_rest(pilot: Pilot[None]) -> str:
    """The screen, once it has been the same for a tenth of a second."""
    app, before = pilot.app, ""
    assert isinstance(app, ClipApp)
    deadline = time.monotonic() + SECONDS
    while (shown := screen_text(app)) != before and time.monotonic() < deadline:
        before = shown
        await pilot.pause(0.1)
    return shown
