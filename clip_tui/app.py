"""The app: which run is open, the processes it started, and the way between the screens. The event loop only draws."""

import asyncio
import gc
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from textual import work
from textual.app import SystemCommand
from textual.filter import NoColor
from textual.notifications import SeverityLevel
from textual.reactive import reactive
from textual.screen import Screen

from clip_core.errors import ClipError, RunError
from clip_core.run.paths import is_run
from clip_core.text import printable
from clip_tui import starter
from clip_tui.actions import APP, actions_of, bindings
from clip_tui.encoder import Backend, Encoders, other
from clip_tui.glyphs import AsciiFilter
from clip_tui.output import DiffingApp
from clip_tui.theme import DARK
from clip_tui.watcher import RunWatch, Snapshot, Trainer, overview

POLL_SECONDS = 0.5
WARM_UP_SECONDS = 0.2  # after the first frame
WIDTHS = [(0, "-too-narrow"), (60, "-narrow"), (120, "-wide")]
HEIGHTS = [(0, "-too-low"), (15, "-low"), (36, "-high")]


def _screen(page: str, name: str) -> Callable[[], Screen[None]]:
    """A screen whose module is imported when it is shown first."""

    def make() -> Screen[None]:
        screen: Screen[None] = getattr(import_module(f"clip_tui.screens.{page}"), name)()
        return screen

    return make


class ClipApp(DiffingApp):
    """clip-tui on the runs below `root`."""

    TITLE = "clip-tui"
    CSS_PATH = "style.tcss"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS = bindings(APP)
    HORIZONTAL_BREAKPOINTS = WIDTHS
    VERTICAL_BREAKPOINTS = HEIGHTS
    SCREENS: ClassVar[dict[str, Callable[[], Screen[None]]]] = {
        "runs": _screen("runs", "RunsScreen"),
        "live": _screen("live", "LiveScreen"),
        "data": _screen("data", "DataScreen"),
        "retrieve": _screen("retrieve", "RetrieveScreen"),
        "classify": _screen("classify", "ClassifyScreen"),
        "logs": _screen("logs", "LogsScreen"),
        "export": _screen("export", "ExportScreen"),
    }

    snapshot: reactive[Snapshot | None] = reactive(None)
    backend: reactive[Backend] = reactive("torch")
    overlays: reactive[tuple[Path, ...]] = reactive(())  # runs whose curves are drawn with those of the open one

    def __init__(self, root: Path, *, ascii_only: bool = False, open_run: Path | None = None) -> None:
        super().__init__()
        self.root = root
        self.draft: dict[str, Any] = {}  # what was typed into the form of a new run
        self.draft_run: Path | None = None  # the run that was started from the draft last
        self.trainers: dict[Path, starter.Process] = {}
        self.exports: dict[Path, starter.Process] = {}
        self.set_reactive(ClipApp.backend, "torch" if find_spec("torch") else "onnx")
        self._folder = TemporaryDirectory(prefix="clip-tui-")
        self.encoders = Encoders(Path(self._folder.name))
        self._open_at_start = open_run
        self._watch: RunWatch | None = None
        if self.no_color:
            self._filters.append(NoColor())  # Textual alone would send shades of grey
        if ascii_only:
            self.add_class("-ascii")
            self._filters.append(AsciiFilter())
        self.register_theme(DARK)
        self.theme = DARK.name

    # ------------------------------------------------------------ life

    def on_mount(self) -> None:
        self.push_screen("runs")
        self.set_timer(WARM_UP_SECONDS, self._warm_up)
        if self._open_at_start is not None:
            self.open_run(self._open_at_start)

    def _warm_up(self) -> None:
        """Import what Live needs, NumPy and Pillow above all, in a thread, so that opening a run does not wait for it.

        All that is there then stays: the garbage collector need not look at it again, which takes 60 ms each time.
        """

        def load() -> None:
            for module in ("clip_tui.screens.live", "clip_tui.widgets.halfblocks"):
                import_module(module)
            if not self.is_headless:  # tests make many apps, each of which is garbage afterwards
                gc.freeze()

        self.run_worker(load, name="warm-up", thread=True, exit_on_error=False)

    async def on_unmount(self) -> None:
        await self.encoders.close()
        self._folder.cleanup()

    # ------------------------------------------------------------ the open run

    def open_run(self, path: Path, page: str = "live") -> None:
        """Attach to a run and show it."""
        self._watch = RunWatch(path)
        self.overlays = ()
        self.snapshot = overview(path, self.started().get(path))  # what is read at once; the rest follows
        self._follow(self._watch)
        self.action_go(page)

    @work(name="watch", group="watch", exclusive=True)
    async def _follow(self, watch: RunWatch) -> None:
        while True:
            trainer = self.started().get(watch.reader.path)
            self.snapshot = snapshot = await asyncio.to_thread(watch.refresh, trainer)
            await asyncio.sleep(POLL_SECONDS if snapshot.complete else 0.0)

    def started(self) -> dict[Path, Trainer]:
        """The trainers that this app started, by run directory."""
        return {path: Trainer(process.pid, process.poll()) for path, process in self.trainers.items()}

    @property
    def new_runs_in(self) -> Path:
        """Where new runs are written: below the root, or beside it if the root is a run itself."""
        return self.root.resolve().parent if is_run(self.root) else self.root

    def start_trainer(self, run_dir: Path, flags: list[str], *, resume: bool = False) -> None:
        """Start a trainer that outlives this app, and show its run; a problem is shown on the screen."""
        try:
            self.trainers[run_dir] = starter.start_trainer(run_dir, flags, resume=resume)
        except ClipError as error:
            self.say_problem(error)
            return
        self.open_run(run_dir)

    def start_export(self, run: Path) -> starter.Process | None:
        """Start the export of a run; None, with the reason on the screen, where it cannot start or one runs already."""
        known = self.exports.get(run)
        try:
            if known is not None and known.poll() is None:  # it may not have taken its lock yet
                raise RunError(f"{run} is being exported already; wait for it to end.")
            self.exports[run] = starter.start_export(run)
        except ClipError as error:
            self.say_problem(error)
            return None
        return self.exports[run]

    def say_problem(self, error: ClipError) -> None:
        self.say(str(error), severity="error")

    def say(self, text: str, *, severity: SeverityLevel = "information") -> None:
        """A line in the corner; `text` may hold anything."""
        self.notify(printable(text, 300), severity=severity, markup=False)

    # ------------------------------------------------------------ actions

    def action_go(self, page: str) -> None:
        """Change to a screen; all but the list of runs need an open run."""
        if page != "runs" and self.snapshot is None:
            self.say("Open a run first: choose one and press Enter, or press n for a new one.", severity="warning")
            return
        while len(self.screen_stack) > 2:
            self.pop_screen()
        if getattr(self.screen, "PAGE", "") != page:
            self.switch_screen(page)

    def action_backend(self) -> None:
        self.backend = other(self.backend)

    def action_help(self) -> None:
        from clip_tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen())

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The command palette: the table of actions, for the app and for the screen in front."""
        page = str(getattr(screen, "PAGE", ""))
        for action in actions_of(page, APP):
            if action.name != "command_palette":
                run = partial(screen.run_action, action.name if action.scope != APP else f"app.{action.name}")
                yield SystemCommand(f"{action.label}  ({action.keys})", action.help, run)
        yield SystemCommand("Theme", "Choose the colours", self.action_change_theme)
