"""The app as the demo opens it: when training is done it exports, then shows an image classified by ONNX Runtime."""

import asyncio
from pathlib import Path

from textual import work

from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_tui import starter
from clip_tui.app import ClipApp

POLL_SECONDS = 0.4


class DemoApp(ClipApp):
    """Does the next step by itself, and never what was already done."""

    def __init__(self, run: Path, trainer: starter.Process | None, *, ascii_only: bool = False) -> None:
        super().__init__(run.parent, ascii_only=ascii_only, open_run=run)
        self._demo_run = run
        if trainer is not None:
            self.trainers[run] = trainer

    def on_mount(self) -> None:
        super().on_mount()
        self._lead()

    @work(name="demo", group="demo", exclusive=True)
    async def _lead(self) -> None:
        run = self._demo_run
        reader = RunReader(run)
        self.say("The demo trains on drawn shapes; when it is done, the model is exported and used. q leaves.")
        while await asyncio.to_thread(reader.state) is not State.FINISHED:
            await asyncio.sleep(POLL_SECONDS)
        if not (run / "bundle" / "manifest.json").exists():
            self.say("Training is done; exporting both encoders to ONNX.")
            self.open_run(run, "export")
            process = self.start_export(run)
            while process is not None and process.poll() is None:
                await asyncio.sleep(POLL_SECONDS)
            if process is None or process.returncode:
                return
            await asyncio.sleep(3.0)  # time to read the parity table
        await self._classify(run)

    async def _classify(self, run: Path) -> None:
        from clip_tui.screens.classify import ClassifyScreen

        self.backend = "onnx"
        self.open_run(run, "classify")
        for _ in range(50):
            screen = self.screen
            if isinstance(screen, ClassifyScreen) and screen.gallery.images:
                screen.classify()
                self.say("Classified by ONNX Runtime: an image held out of training. b asks torch the same.")
                return
            await asyncio.sleep(0.1)
