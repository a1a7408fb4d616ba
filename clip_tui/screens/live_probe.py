"""The probe of Live: which evaluation, which pair, and pairs that are flagged as bad."""

import asyncio
from functools import partial
from pathlib import Path

from rich.text import Text
from textual import on, work

from clip_core.run.paths import RunPaths
from clip_core.run.reader import RunReader
from clip_core.run.records import Probe
from clip_core.text import printable
from clip_tui.screens.page import Page
from clip_tui.watcher import Snapshot
from clip_tui.widgets.heat_map import HeatMap
from clip_tui.widgets.probe_view import PairPanel, ProbePanel, rank_of, rows_of


class ProbePage(Page):
    """A page with a ProbePanel and a PairPanel."""

    def __init__(self) -> None:
        super().__init__()
        self._run: Path | None = None
        self._probe: Probe | None = None  # the one that is shown
        self._probe_at: int | None = None  # its step, where an older one was chosen; None follows the run
        self._flagged: frozenset[tuple[str, str]] = frozenset()
        self._probe_shown: object = None

    def _reset_probe(self, run: Path) -> None:
        """Another run: its last evaluation, its first image."""
        self._run, self._probe, self._probe_at, self._flagged = run, None, None, frozenset()
        self.query_one(HeatMap).reset()
        self._read_flags(run)

    def _follow_probe(self, snapshot: Snapshot) -> None:
        """Show the last evaluation, unless an older one was chosen."""
        if self._probe_at is None or self._probe is None:
            self._probe = snapshot.probe
        self._show_probe(snapshot)

    def _show_probe(self, snapshot: Snapshot) -> None:
        probe = self._probe
        panel, heat = self.query_one(ProbePanel), self.query_one(HeatMap)
        state = (probe, snapshot.probe_steps, self._flagged, heat.cursor, self.size)
        if self._probe_shown == state:
            return
        self._probe_shown = state
        rows = rows_of(probe)
        panel.border_title = f"Probe {rows}x{rows}, step {probe.step:,}" if probe and rows else "Probe"
        panel.show(probe, snapshot.probe_steps, self._flagged)
        pair = self.query_one(PairPanel)
        row, column = heat.cursor
        name = Path(probe.images[row % rows]).name if probe and rows else "Image"
        pair.border_title = Text(printable(name, 40) or "Image")  # as text, which is never markup
        pair.show(probe, row, column)

    @on(HeatMap.Chosen)
    def _cell_chosen(self, message: HeatMap.Chosen) -> None:
        if self.snapshot:
            self._show_probe(self.snapshot)
        if message.opened:
            self._open_cell(message.row, message.column)

    def _open_cell(self, row: int, column: int) -> None:
        from clip_tui.screens.pair import Cell, PairScreen

        probe, rows = self._probe, rows_of(self._probe)
        if probe is None or not rows:
            return
        row, column = row % rows, column % rows
        own = probe.captions[row]
        cell = Cell(
            Path(probe.images[row]), probe.captions[column], probe.similarity[row][column], row == column, own,
            rank_of(probe, row), probe.step, (probe.images[row], own) in self._flagged,
        )  # fmt: skip
        self.app.push_screen(PairScreen(cell))

    def action_probe(self) -> None:
        """The next image, with its own caption."""
        heat = self.query_one(HeatMap)
        rows = max(1, rows_of(self._probe))
        row = (heat.cursor[0] + 1) % rows
        heat.choose(row, row)

    def action_open_pair(self) -> None:
        self._open_cell(*self.query_one(HeatMap).cursor)

    def action_scrub(self, by: int) -> None:
        """To an earlier or a later evaluation; the last one follows the run again."""
        snapshot = self.snapshot
        if snapshot is None or not snapshot.probe_steps:
            return
        steps = list(snapshot.probe_steps)
        at = steps.index(self._probe_at) if self._probe_at in steps else len(steps) - 1
        at = min(max(0, at + by), len(steps) - 1)
        self._probe_at = steps[at] if at < len(steps) - 1 else None
        self._read_probe(snapshot.path, steps[at])

    @on(ProbePanel.Scrubbed)
    def _scrubbed(self, message: ProbePanel.Scrubbed) -> None:
        self.action_scrub(message.by)

    @work(name="probe", group="probe", exclusive=True)
    async def _read_probe(self, run: Path, step: int) -> None:
        reader = RunReader(run)
        probe = await asyncio.to_thread(reader.probe, reader.paths.probe(step))
        if self.closing or run != self._run:
            return
        if probe is None:
            self.clip.say(f"The probe of step {step} cannot be read.", severity="warning")
        elif self.snapshot:
            self._probe = probe
            self._show_probe(self.snapshot)

    def action_flag(self) -> None:
        """Flag the chosen image and its caption as a bad pair, or take the flag away."""
        pair = self.chosen_pair
        if pair is not None and self._run is not None:
            self._write_flag(self._run, *pair)

    @property
    def chosen_pair(self) -> tuple[str, str] | None:
        """The path of the chosen image, and its own caption."""
        probe, rows = self._probe, rows_of(self._probe)
        if probe is None or not rows:
            return None
        row = self.query_one(HeatMap).cursor[0] % rows
        return probe.images[row], probe.captions[row]

    @work(name="flags", group="flags")
    async def _write_flag(self, run: Path, image: str, caption: str) -> None:
        pairs = await self.flags_after(run, lambda reader: reader.toggle_flag(image, caption))
        if pairs is None:
            return
        self._flags_came(run, pairs)
        done = "flagged as bad" if (image, caption) in pairs else "no longer flagged"
        self.did(f"{Path(image).name} {done}", partial(self._unflag, run, image, caption))
        self.clip.say(f"{Path(image).name} {done}; {len(pairs):,} in {RunPaths(run).flags} (clip-train --leave-out).")

    def _unflag(self, run: Path, image: str, caption: str) -> None:
        """Turn a flag back; that of a run which is open no more, too."""
        flags = RunReader(run).toggle_flag(image, caption)
        self._flags_came(run, frozenset((pair.image, pair.caption) for pair in flags.pairs))

    @work(name="read-flags", group="read-flags", exclusive=True)
    async def _read_flags(self, run: Path) -> None:
        if (pairs := await self.flags_after(run, RunReader.flags)) is not None:
            self._flags_came(run, pairs)

    def _flags_came(self, run: Path, flagged: frozenset[tuple[str, str]]) -> None:
        if run == self._run and not self.closing:
            self._flagged = flagged
            if self.snapshot:
                self._show_probe(self.snapshot)
