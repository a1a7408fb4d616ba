"""The app as the demo opens it: when training is done it exports, then shows an image classified by ONNX Runtime."""

import asyncio
from pathlib import Path

from textual import work

from clip_core.run.reader import RunReader
from clip_core.run.records import State
from clip_tui import starter
from clip_tui.app import ClipApp
from clip_tui.demo import has_bundle

POLL_SECONDS = 0.4


class DemoApp(ClipApp):
    """Exports and classifies by itself; what is done already is not done again."""

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
        self.say("The demo trains on drawn shapes, exports the model and uses it. q leaves; training goes on.")
        while await asyncio.to_thread(reader.state) is not State.FINISHED:
            await asyncio.sleep(POLL_SECONDS)
        if not has_bundle(run):
            self.say("Training is done; exporting both encoders to ONNX.")
            self.open_run(run, "export")
            process = None if starter.is_exporting(run) else self.start_export(run)
            while starter.is_exporting(run) or (process is not None and process.poll() is None):
                await asyncio.sleep(POLL_SECONDS)
            if not has_bundle(run):
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
                self.say("Classified by ONNX Runtime: a validation image. b classifies it with torch.")
                return
            await asyncio.sleep(0.1)
