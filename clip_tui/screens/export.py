"""The ONNX bundle of the run: starting the export, what it prints, and the proof that both say the same."""

import asyncio
from pathlib import Path

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import RichLog, Static

from clip_core.errors import BundleError
from clip_core.inference.bundle import Manifest
from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.bundle_view import bundle_of, bundle_size, parity_lines, parity_verdict
from clip_tui.screens.page import Page
from clip_tui.tail import Tail
from clip_tui.theme import BLUE, GREEN, RED, YELLOW
from clip_tui.watcher import Snapshot

POLL_SECONDS = 0.3


class ExportScreen(Page):
    """e starts clip-export as a process of its own; the table comes from the manifest that it wrote."""

    PAGE = "export"
    BINDINGS = bindings("export")

    def __init__(self) -> None:
        super().__init__()
        self._run: Path | None = None
        self._ended = ""

    def body(self) -> ComposeResult:
        with VerticalScroll(id="bundle", can_focus=False) as bundle:
            bundle.border_title = "Bundle"
            yield Static("", markup=False, id="bundle-about")
            yield Static("", markup=False, id="parity")
        log = RichLog(wrap=True, min_width=20, markup=False, highlight=False, id="export-log")
        log.border_title = "export.log"
        yield log

    def run_came(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None and snapshot.path != self._run:
            self._run, self._ended = snapshot.path, ""
            self.query_one("#export-log", RichLog).clear()
            self._follow(snapshot.path)

    @work(name="export", group="export", exclusive=True)
    async def _follow(self, run: Path) -> None:
        """Show the log as it grows and the bundle when it changes, for as long as this run is open here."""
        tail, shown = Tail(run / "export.log"), ""
        log = self.query_one("#export-log", RichLog)
        while not self.closing:
            process = self.clip.exports.get(run)
            code = process.poll() if process else None
            for line in await asyncio.to_thread(tail.new_lines, ended=process is None or code is not None):
                log.write(Text(printable(line)))
            state = f"{code}:{process.pid if process else 0}:{_stamp(run)}"
            if state != shown:
                shown = state
                await self._show_bundle(run, busy=process is not None and code is None, code=code)
            await asyncio.sleep(POLL_SECONDS)

    async def _show_bundle(self, run: Path, *, busy: bool, code: int | None) -> None:
        about, table = self.query_one("#bundle-about", Static), self.query_one("#parity", Static)
        try:
            manifest = await asyncio.to_thread(bundle_of, run)
        except BundleError as error:
            if not self.closing:
                about.update(Text(printable(str(error)), f"bold {RED}"))
                table.update("")
            return
        if self.closing:
            return
        if busy:
            about.update(Text("exporting both encoders …", f"bold {YELLOW}"))
        elif code:
            about.update(Text(f"the export failed with code {code}; what it said stands below", f"bold {RED}"))
        elif manifest is None:
            about.update(Text.assemble(("no bundle yet: ", ""), ("e", f"bold {BLUE}"), " exports the best checkpoint"))
        else:
            about.update(_about(manifest, run))
        table.update(_table(manifest) if manifest and not busy else "")

    def action_export(self) -> None:
        if self._run is not None and self.clip.start_export(self._run) is not None:
            self.clip.say("Exporting; it goes on if you look at something else.")


def _stamp(run: Path) -> int:
    try:
        return (run / "bundle" / "manifest.json").stat().st_mtime_ns
    except OSError:
        return 0


def _about(manifest: Manifest, run: Path) -> Text:
    source = manifest.source
    size = bundle_size(manifest) / 2**20
    text = Text.assemble((printable(str(run / "bundle")), "bold"), f"  {size:.1f} MB, opset {manifest.opset}\n")
    text.append(f"from {printable(source.run)}, {printable(source.checkpoint)}\n", "dim")
    style = f"bold {GREEN}" if manifest.parity.accepted else f"bold {RED}"
    return text.append(parity_verdict(manifest) + "\n", style)


def _table(manifest: Manifest) -> Text:
    header, *rows = parity_lines(manifest)
    return Text.assemble((header + "\n", "dim"), "\n".join(rows), no_wrap=True)
