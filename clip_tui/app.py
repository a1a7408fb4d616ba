"""The app: which run is open, the processes it started, and the way between the screens. The event loop only draws."""

import asyncio
import gc
import os
import select
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import ClassVar

from textual import on, work
from textual.app import SystemCommand
from textual.events import DescendantFocus
from textual.filter import NoColor
from textual.notifications import SeverityLevel
from textual.reactive import reactive
from textual.screen import Screen
from textual.theme import Theme
from textual.widget import Widget
from textual.widgets import Input, Select, Switch

from clip_core.errors import ClipError, RunError
from clip_core.run.lock import is_locked
from clip_core.run.paths import RunPaths, is_run
from clip_core.text import printable
from clip_tui import starter
from clip_tui.actions import APP, actions_of, bindings
from clip_tui.encoder import Backend, Encoders, Model, other
from clip_tui.glyphs import AsciiFilter
from clip_tui.images import Way, asked_tmux, cell_known, choose
from clip_tui.output import DiffingApp
from clip_tui.settings import Settings
from clip_tui.theme import DARK, THEMES, Recolour, readable, recolour
from clip_tui.undo import Undo
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
    second: reactive[Model | None] = reactive(None)  # the model that answers beside the first one
    overlays: reactive[tuple[Path, ...]] = reactive(())  # runs whose curves are drawn with those of the open one

    def __init__(
        self,
        root: Path,
        *,
        ascii_only: bool = False,
        open_run: Path | None = None,
        settings: Settings | None = None,
    ) -> None:
        super().__init__()
        self.root = root
        self.settings = settings or Settings()
        self.trainers: dict[Path, starter.Process] = {}
        self.exports: dict[Path, starter.Process] = {}
        self.checks: dict[Path, starter.Process] = {}
        self.set_reactive(ClipApp.backend, "torch" if find_spec("torch") else "onnx")
        self.encoders = Encoders()
        self.undo = Undo()
        self._open_at_start = open_run
        self._watch: RunWatch | None = None
        if self.no_color:
            self._filters.append(NoColor())  # Textual alone would send shades of grey
        if ascii_only:
            self.add_class("-ascii")
            self._filters.append(AsciiFilter())
        self._recolour: Recolour | None = None
        for theme in THEMES:
            self.register_theme(theme)
        chosen = self.settings.theme
        self.theme = chosen if chosen in self.available_themes else DARK.name

    # ------------------------------------------------------------ life

    def on_mount(self) -> None:
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        self._apply_theme()
        self._choose_images()
        self.push_screen("runs")
        if self.is_web:
            Thread(target=self._end_with_the_server, name="server", daemon=True).start()
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

    def _end_with_the_server(self) -> None:
        """Wait until the server of --serve is gone, also by SIGKILL, and leave: nobody sees the app any more."""
        server = select.poll()
        server.register(0, 0)  # no input, only that its other end was closed
        server.poll()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still drawn has no reader either
        with suppress(RuntimeError):  # the app has ended already
            self.call_from_thread(self.exit)

    def _choose_images(self) -> None:
        """The one place where the way of drawing images is chosen; `pixel_images` stays None for half blocks."""
        way, reason = choose(
            self.settings.images,
            ascii_only=self.has_class("-ascii"),
            no_color=self.no_color,
            true_colour=self.is_headless or self.console.color_system == "truecolor",
            web=self.is_web,
            tmux=None if self.settings.images is Way.HALFBLOCKS else asked_tmux(),
            cell_known=self.is_headless or cell_known(),
        )
        if reason:
            self.say(reason, severity="warning")
        if way is Way.KITTY:
            from clip_tui.widgets.kitty import Kitty

            self.pixel_images = Kitty(self.send, self._say_lost, self._shown.visible)
        elif way is Way.SIXEL:
            from clip_tui.widgets.sixel import Sixel

            self.pixel_images = Sixel(lambda number: self.send(self._shown.repaint(number)), self._say_lost)

    def _say_lost(self, problem: str) -> None:
        self.say(problem, severity="warning")

    async def on_unmount(self) -> None:
        if self.pixel_images is not None:
            self.pixel_images.close()
        await self.encoders.close()

    def _theme_changed(self, theme: Theme) -> None:
        self._apply_theme()
        self.refresh_css()
        self.settings.theme = theme.name
        self.save_settings()

    def get_css_variables(self) -> dict[str, str]:
        variables = super().get_css_variables()
        theme = self.current_theme
        if theme not in THEMES and not theme.ansi:
            self.theme_variables = variables = readable(variables)
        return variables

    def _apply_theme(self) -> None:
        """The colours that widgets draw in follow the theme."""
        filters = [each for each in self._filters if each is not self._recolour]
        self._recolour = recolour(self.current_theme)
        self._filters[:] = [self._recolour, *filters] if self._recolour else filters

    def save_settings(self) -> None:
        problem = self.settings.save()
        if problem is not None:
            self.say(problem, severity="warning")

    # ------------------------------------------------------------ the open run

    def open_run(self, path: Path, page: str = "live") -> None:
        """Attach to a run and show it."""
        self._watch = RunWatch(path)
        if self.second is not None and self.snapshot is not None and self.snapshot.path != path:
            self.second = None
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
            if is_locked(RunPaths(run_dir).lock):  # a second trainer would only write its refusal into the log
                raise RunError(f"a trainer writes to {run_dir} already; it is the run that is open now.")
            self.trainers[run_dir] = starter.start_trainer(run_dir, flags, resume=resume)
        except ClipError as error:
            self.say_problem(error)
            return
        self.open_run(run_dir)

    def start_export(self, run: Path, precisions: Sequence[str] = ()) -> starter.Process | None:
        """Start the export of a run; None, with the reason on the screen, where it cannot start or one runs already."""
        known = self.exports.get(run)
        try:
            if known is not None and known.poll() is None:  # it may not have taken its lock yet
                raise RunError(f"{run} is being exported already; wait for it to end.")
            self.exports[run] = starter.start_export(run, precisions)
        except ClipError as error:
            self.say_problem(error)
            return None
        return self.exports[run]

    def start_bench(self, run: Path) -> None:
        """Measure the run's bundle; the outcome is appended to the export's log."""
        try:
            self.exports[run] = starter.start_bench(run)
        except ClipError as error:
            self.say_problem(error)
        else:
            self.say("Measuring the bundle; the table comes into the log.")

    @work(name="warm-up", group="warm-up", exclusive=True)
    async def warm_up(self, model: Model) -> None:
        """Start an encoder before it is asked for; what is wrong with it is said when it is."""
        with suppress(ClipError):
            await self.encoders.ask(model, "search", terms=[{"text": "a"}], texts=["a"], top_k=1)

    def say_problem(self, error: ClipError) -> None:
        self.say(str(error), severity="error")

    def say(self, text: str, *, severity: SeverityLevel = "information") -> None:
        """A line in the corner; `text` may hold anything."""
        self.notify(printable(text, 300), severity=severity, markup=False)

    # ------------------------------------------------------------ actions

    def compare(self, paths: Sequence[Path]) -> None:
        """Compare runs: their settings and scores in a table; `overlays` has those that Live draws with the first."""
        from clip_tui.screens.compare import CompareScreen

        if len(paths) < 2:
            self.say("Mark at least two runs with space, then press c.", severity="warning")
        else:
            self.push_screen(CompareScreen(list(paths)))

    def overlay(self, paths: Sequence[Path]) -> None:
        """Open the first run with the curves of the others drawn beside its own."""
        self.open_run(paths[0])
        self.overlays = tuple(paths[1:])

    def action_jump(self) -> None:
        from clip_tui.screens.jump import JumpScreen

        if getattr(self.screen, "PAGE", "") not in ("jump", "dialog", "help"):
            self.push_screen(JumpScreen(self.screen), self._jumped)

    def _jumped(self, target: Widget | str | None) -> None:
        if isinstance(target, str):
            self.action_go(target)
        elif target is not None and target.is_attached:
            target.focus()

    def action_copy(self) -> None:
        """Copy what is selected on the screen; the terminal does it (OSC 52), so it works over SSH."""
        copied = getattr(self.screen, "copied", lambda: None)()
        if not copied:
            self.say("There is nothing here to copy.", severity="warning")
            return
        text = "\n".join(printable(line) for line in copied.splitlines())
        self.copy_to_clipboard(text)
        self.say(f"Copied, if the terminal allows it: {printable(text, 80)}")

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

    # ------------------------------------------------------------ undo

    @property
    def _scope(self) -> str:
        return str(getattr(self.screen, "PAGE", ""))

    @on(DescendantFocus)
    def _focused(self, event: DescendantFocus) -> None:
        self.undo.saw(event.widget)

    @on(Input.Changed)
    @on(Select.Changed)
    @on(Switch.Changed)
    def _field_changed(self, event: Input.Changed | Select.Changed | Switch.Changed) -> None:
        self.undo.changed(event.control, self._scope)

    def action_undo(self) -> None:
        change = self.undo.take(self._scope)
        if change is None:
            self.say("There is nothing to undo on this screen.")
            return
        try:
            change.back()
        except ClipError as error:
            self.say_problem(error)
        except OSError as error:
            self.say_problem(RunError(f"{change.what} cannot be undone ({error.strerror})."))
        else:
            if change.what:
                self.say(f"Undone: {change.what}.")

    def action_help(self) -> None:
        from clip_tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self._scope))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The command palette: the table of actions, for the app and for the screen in front."""
        page = str(getattr(screen, "PAGE", ""))
        for action in actions_of(page, APP):
            if action.name != "command_palette":
                run = partial(screen.run_action, action.name if action.scope != APP else f"app.{action.name}")
                yield SystemCommand(f"{action.label}  ({action.keys})", action.help, run)
        yield SystemCommand("Theme", "Choose the colours", self.action_change_theme)
