"""The Export screen: starts clip-export, follows its status and log, and shows the bundle with its parity table."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import RichLog, Static

from clip_core.errors import BundleError
from clip_core.inference.manifest import Manifest
from clip_core.run.paths import RunPaths
from clip_core.run.reader import RunReader
from clip_core.run.records import State, Status
from clip_core.text import printable
from clip_tui import starter
from clip_tui.actions import bindings
from clip_tui.bundle_view import bundle_of, bundle_size, parity_lines, parity_verdict, variant_verdicts
from clip_tui.encoder import model_of
from clip_tui.numbers import duration
from clip_tui.screens.dialogs import Choice, Chooser
from clip_tui.screens.page import Page
from clip_tui.tail import Tail
from clip_tui.theme import BLUE, GREEN, RED, YELLOW
from clip_tui.watcher import Snapshot

POLL_SECONDS = 0.3
_AT_WORK = "clip-export is working on this run already; wait for it to end."
_REMARKS = {
    "fp32": "as trained",
    "fp16": "half the size, for GPUs",
    "int8": "a quarter of the size, faster on CPUs; its parity and recall are measured",
}


@dataclass(frozen=True)
class ExportState:
    """A run's export and bundle at one moment.

    Attributes:
        export: state and status of the last export, or None where there was none.
        error: why the bundle cannot be read.
        stale: `bundle of step 1020, best checkpoint is step 1374`.
        exit_code: of an export that this app started and that has ended.
    """

    path: Path
    export: tuple[State, Status] | None = None
    manifest: Manifest | None = None
    error: str | None = None
    stale: str | None = None
    exit_code: int | None = None

    @property
    def running(self) -> bool:
        return self.export is not None and self.export[0].alive


def read_export(run: Path, exit_code: int | None = None) -> ExportState:
    """What the run directory says about its export and its bundle."""
    reader = RunReader(run)
    manifest, error = None, None
    try:
        manifest = bundle_of(run)
    except BundleError as damaged:
        error = str(damaged)
    return ExportState(run, reader.export_status(), manifest, error, reader.stale_bundle(), exit_code)


PRECISIONS: tuple[tuple[str, ...], ...] = (("fp32",), ("fp32", "fp16"), ("fp32", "int8"), ("fp32", "fp16", "int8"))


class ExportScreen(Page):
    """e starts clip-export as a process of its own, which outlives the app."""

    PAGE = "export"
    BINDINGS = bindings("export")

    def __init__(self) -> None:
        super().__init__()
        self._run: Path | None = None
        self._state: ExportState | None = None
        self._chosen: tuple[str, ...] = ()  # precisions; none were yet
        self._was_running = False

    def body(self) -> ComposeResult:
        with VerticalScroll(id="bundle") as bundle:
            bundle.border_title = "Bundle"
            yield Static("", markup=False, id="bundle-about")
            yield Static("", markup=False, id="parity")
        log = RichLog(wrap=True, min_width=20, markup=False, highlight=False, id="export-log")
        log.border_title = "export.log"
        yield log

    def run_came(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None and snapshot.path != self._run:
            self._run, self._chosen = snapshot.path, ()
            self._follow(snapshot.path)

    @work(name="export", group="export", exclusive=True)
    async def _follow(self, run: Path) -> None:
        """Show the log as it grows and the state as it changes, for as long as this run is open here."""
        tail = Tail(RunPaths(run).export_log)
        log = self.query_one("#export-log", RichLog)
        log.clear()
        while not self.closing:
            process = self.clip.exports.get(run)
            code = process.poll() if process else None
            if not (self.is_current or self._was_running or (process and code is None)):
                await asyncio.sleep(POLL_SECONDS)  # nobody sees it, and there will be no new bundle to open
                continue
            state = await asyncio.to_thread(read_export, run, code)
            lines = await asyncio.to_thread(tail.new_lines, ended=not state.running and not (process and code is None))
            if self.closing:
                return
            for line in lines:
                if _of_table(line) and state.manifest is not None:
                    continue  # the panel above has it
                log.write(Text(printable(line)))
            self._show(state)
            self._show_precisions()
            self._open_new_bundle(state)
            await asyncio.sleep(POLL_SECONDS)

    def _show(self, state: ExportState) -> None:
        if state != self._state or state.running:  # while it runs, the time that it has taken changes
            self._state = state
            self.query_one("#bundle-about", Static).update(export_text(state, time.time()))
            self.query_one("#parity", Static).update(_table(state.manifest) if state.manifest else "")

    @property
    def _precisions(self) -> tuple[str, ...]:
        """What the next export writes: what was chosen, else what the bundle has that it replaces."""
        manifest = self._state.manifest if self._state else None
        return self._chosen or (tuple(each.precision for each in manifest.variants) if manifest else ("fp32",))

    def _show_precisions(self) -> None:
        self.query_one("#bundle").border_subtitle = f"e exports {' + '.join(self._precisions)} · f chooses"

    def _open_new_bundle(self, state: ExportState) -> None:
        """A bundle that was just written answers the next query, and its encoder starts now."""
        ended, self._was_running = self._was_running and not state.running, state.running
        made = state.export is not None and state.export[0] is State.FINISHED and state.manifest is not None
        if ended and made and state.error is None:
            self.clip.backend = "onnx"
            self.clip.warm_up(model_of(state.path, "onnx"))
            self.clip.say("The new bundle is the backend of Retrieve and Classify now.")
            self._follow(state.path)  # the log anew, without the table that the panel has now

    def copied(self) -> str | None:
        """The parity table, or where the bundle is."""
        if self._state is None or self._state.manifest is None:
            return None
        return "\n".join([str(RunPaths(self._state.path).bundle_manifest.parent), *parity_lines(self._state.manifest)])

    def action_precision(self) -> None:
        if not starter.can_choose_precisions():
            self.clip.say("This clip-export writes fp32 alone.", severity="warning")
            return
        choices: list[Choice[tuple[str, ...]]] = [
            Choice(each, " + ".join(each), _REMARKS[each[-1]]) for each in PRECISIONS
        ]
        chooser: Chooser[tuple[str, ...]] = Chooser("Precisions of the bundle", choices, self._precisions)
        self.app.push_screen(chooser, self._precision_chosen)

    def _precision_chosen(self, choice: Choice[tuple[str, ...]] | None) -> None:
        if choice is not None:
            self._chosen = choice.value
            self._show_precisions()

    def _at_work(self) -> bool:
        """An export or a measurement of this run is running."""
        process = self.clip.exports.get(self._run) if self._run else None
        return (self._state is not None and self._state.running) or (process is not None and process.poll() is None)

    def action_bench(self) -> None:
        """Measure the bundle; the table comes into the log."""
        if self._run is None or self._state is None or self._state.manifest is None:
            self.clip.say("There is no bundle to measure yet; e exports one.", severity="warning")
        elif self._at_work():
            self.clip.say(_AT_WORK, severity="warning")
        elif not starter.can_bench():
            self.clip.say("This clip-export has no bench yet.", severity="warning")
        else:
            self.clip.start_bench(self._run)

    def action_export(self) -> None:
        """Start an export, unless one runs already, here or anywhere else."""
        if self._run is None:
            return
        if self._at_work():
            self.clip.say(_AT_WORK, severity="warning")
        elif self.clip.start_export(self._run, self._precisions) is not None:
            self.clip.say("Export started; it continues while you use other screens.")
            self._follow(self._run)


def _of_table(line: str) -> bool:
    """Whether a line of the log is of the parity table."""
    return line.startswith("onnx/") or (line.startswith("file ") and "max |diff|" in line)


def export_text(state: ExportState, now: float) -> Text:
    """What the export does or why it failed, then the bundle that is there."""
    text = _progress(state, now)
    if state.error is not None:
        return text.append(printable(state.error) + "\n", f"bold {RED}")
    if state.manifest is None:
        if not text:
            text.append("No bundle yet; press ").append("e", f"bold {BLUE}").append(" to export the best checkpoint.\n")
        return text
    return text.append_text(_bundle(state.manifest, state))


def _progress(state: ExportState, now: float) -> Text:
    """Nothing for an export that ended well; the whole error of one that did not."""
    what, status = state.export or (None, None)
    if what is not None and status is not None and what.alive:
        by = f"pid {status.pid} on {printable(status.host, 40)}"
        doing = f": {printable(status.message)}" if status.message else "."
        return Text(f"Export running for {duration(now - status.started)} ({by}){doing}\n", f"bold {YELLOW}")
    if what is State.FAILED and status is not None:
        return Text(f"Export failed: {printable(status.error or 'see the log below')}\n", f"bold {RED}")
    if state.exit_code:
        return Text(f"Export failed with exit code {state.exit_code}; see the log below.\n", f"bold {RED}")
    if what in (State.KILLED, State.STOPPED):
        return Text(f"The last export was {what} before it ended; press e to export again.\n", f"bold {RED}")
    return Text()


def _bundle(manifest: Manifest, state: ExportState) -> Text:
    source = manifest.source
    size = bundle_size(manifest) / 2**20
    text = Text()
    if state.stale is not None:
        text.append(f"Older than the run: {state.stale}; press e to export it.\n", f"bold {YELLOW}")
    paths = RunPaths(state.path)
    folder = paths.bundle_manifest.parent
    if folder != paths.bundle:
        text.append("The export that was to replace this bundle was interrupted; ", f"bold {YELLOW}")
        text.append("it is used until the next one (e).\n", f"bold {YELLOW}")
    text.append(printable(str(folder)), "bold")
    text.append(f"  {size:.1f} MB, opset {manifest.opset}\n")
    text.append(f"of {printable(source.run)}, {printable(source.checkpoint)}, step {source.step:,}\n", "dim")
    text.append("parity " + parity_verdict(manifest) + "\n", f"bold {GREEN if manifest.parity.accepted else RED}")
    for variant, sentence in zip(manifest.variants[1:], variant_verdicts(manifest), strict=True):
        text.append(sentence + "\n", GREEN if variant.parity.accepted else RED)
    return text


def _table(manifest: Manifest) -> Text:
    header, *rows = parity_lines(manifest)
    return Text.assemble((header + "\n", "dim"), "\n".join(rows), no_wrap=True)
