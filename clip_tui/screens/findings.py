"""The findings of `clip-data check` on the Data screen: kinds, their groups of pairs, flags, and a check that runs."""

import asyncio
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from clip_core.data.findings_file import MOST_GROUPS, FindingsFile, FoundGroup
from clip_core.errors import ClipError
from clip_core.run.paths import RunPaths
from clip_core.run.reader import RunReader
from clip_core.text import plural, printable
from clip_tui import starter
from clip_tui.screens.dialogs import Confirm
from clip_tui.screens.page import Page
from clip_tui.tail import Tail
from clip_tui.theme import GREEN, RED
from clip_tui.watcher import Snapshot
from clip_tui.widgets.group_list import GroupList
from clip_tui.widgets.image_view import ImageView
from clip_tui.widgets.keys import Options

POLL_SECONDS = 0.5
_REFUSED = "clip-data: "  # the sentence of a check that ended without a report
THUMBNAILS = 4
_KEPT_LINES = 2000  # groups that stay in memory

Pair = tuple[str, str]  # path of the image, caption
_NO_GROUP = FoundGroup(())


class FindingsPage(Page):
    """A page with the findings of the open run's data."""

    def __init__(self) -> None:
        super().__init__()
        self._checked_run: Path | None = None
        self._findings: FindingsFile | None = None
        self._findings_time = 0
        self._findings_problem = ""
        self._kind = 0
        self._group = _NO_GROUP
        self._pair = 0  # of the group
        self._flagged: frozenset[Pair] = frozenset()
        self._read_line = lru_cache(maxsize=_KEPT_LINES)(self._group_at)

    def findings_body(self) -> ComposeResult:
        with Horizontal(id="findings"):
            with Vertical(id="found"):
                yield Options(id="kinds", markup=False, compact=True)
                yield Static("", markup=False, id="kind-text")
                yield GroupList(id="groups")
            with Vertical(id="group"):
                with Horizontal(id="thumbnails"):
                    for number in range(THUMBNAILS):
                        yield ImageView(id=f"thumbnail-{number}")
                yield Static("", markup=False, id="group-text")

    # ------------------------------------------------------------ the file and the check

    def follow_findings(self, snapshot: Snapshot) -> None:
        """Show the findings of this run, now and whenever a check has written them anew."""
        if snapshot.path != self._checked_run:
            self._checked_run, self._findings, self._findings_time = snapshot.path, None, 0
            self._show_kinds()
            self._follow_check(snapshot.path)
            self._read_flags(snapshot.path)

    @work(name="check", group="check", exclusive=True)
    async def _follow_check(self, run: Path) -> None:
        paths = RunPaths(run)
        tail, last = Tail(paths.check_log), ""
        while not self.closing:
            process = self.clip.checks.get(run)
            code = process.poll() if process else None
            if process is not None:
                lines = await asyncio.to_thread(tail.new_lines, ended=code is not None)
                last = next((line for line in reversed(lines) if line.strip()), last)
            await self._read_findings(paths.findings)
            if self.closing or run != self._checked_run:
                return
            if process is not None:
                self._show_check(code, last, paths)
            await asyncio.sleep(POLL_SECONDS)

    async def _read_findings(self, file: Path) -> None:
        try:
            changed = (await asyncio.to_thread(file.stat)).st_mtime_ns
        except OSError:
            changed = 0
        if changed == self._findings_time:
            return
        self._findings_time = changed
        try:
            found = await asyncio.to_thread(FindingsFile.open, file) if changed else None
        except (ClipError, OSError) as error:
            found, self._findings_problem = None, printable(f"{file.name} cannot be read: {error}")
        else:
            self._findings_problem = ""
        if not self.closing:
            self._findings = found
            self._show_kinds()

    def _show_check(self, code: int | None, last: str, paths: RunPaths) -> None:
        if code is None:
            text = Text(f"Checking: {printable(last, 120) or 'starting'}  (c cancels)", GREEN)
        elif code == 0:
            text = Text()
        elif code == 1 and not last.startswith(_REFUSED):
            text = Text("Training would refuse this data: too many pairs are unusable, or a shard is damaged.", RED)
        elif code < 0:
            text = Text("The check was cancelled; nothing was written.", "dim")
        else:
            text = Text(f"The check failed: {printable(last, 300) or 'see ' + str(paths.check_log)}", RED)
        line = self.query_one("#check-line", Static)
        if getattr(line, "shown", None) != text:
            line.shown = text  # type: ignore[attr-defined]
            line.update(text)
            line.display = bool(text.plain)

    def action_check(self) -> None:
        """Start a check of the run's data, or cancel the one that runs."""
        snapshot = self.snapshot
        if snapshot is None:
            return
        process = self.clip.checks.get(snapshot.path)
        if process is not None and process.poll() is None:
            process.terminate()  # it writes its files at the end, each at once
            return
        if snapshot.record is None or snapshot.record.config.data.data_file is None:
            self.clip.say("The run does not name its data, so that there is nothing to check.", severity="warning")
            return
        try:
            self.clip.checks[snapshot.path] = starter.start_check(snapshot.path, snapshot.record.config.data)
        except ClipError as error:
            self.clip.say_problem(error)
            return
        self._follow_check(snapshot.path)

    # ------------------------------------------------------------ kinds and groups

    def _show_kinds(self) -> None:
        found = self._findings
        self._read_line.cache_clear()
        kinds = self.query_one("#kinds", OptionList)
        kinds.clear_options()
        named = found.checked.findings if found else []
        kinds.add_options(Option(Text(f"{kind.count:>9,} {printable(kind.title, 40)}")) for kind in named)
        if named:
            kinds.highlighted = min(self._kind, len(named) - 1)
        self._show_groups()

    @on(OptionList.OptionHighlighted, "#kinds")
    def _kind_chosen(self, message: OptionList.OptionHighlighted) -> None:
        if message.option_index != self._kind:
            self._kind = message.option_index
            self._show_groups()

    def _show_groups(self) -> None:
        found = self._findings
        about, groups = self.query_one("#kind-text", Static), self.query_one(GroupList)
        if found is None or not found.checked.findings:
            nothing = "Not checked yet: c checks the data." if found is None else "The check found nothing."
            about.update(Text(self._findings_problem or nothing, "dim"))
            groups.show(0, str)
        else:
            self._kind = min(self._kind, len(found.checked.findings) - 1)
            kind, listed = found.checked.findings[self._kind], len(found.lines[self._kind])
            text = Text(printable(f"{kind.text}; {kind.advice}", 400))
            if listed >= MOST_GROUPS:
                text.append(f" The first {listed:,} are listed.", "dim")
            about.update(text)
            groups.show(listed, self._line_of)
        self._show_group()

    def _group_at(self, kind: int, place: int) -> FoundGroup:
        return self._findings.group(kind, place) if self._findings else _NO_GROUP

    def _line_of(self, place: int) -> str:
        group = self._read_line(self._kind, place)
        flags = sum(pair in self._flagged for pair in group.pairs)
        mark = "■" if flags else " "
        if not group.pairs:
            return f"{mark} {printable(group.note, 200)}"
        image, caption = group.pairs[0]
        return f"{mark} {printable(Path(image).name, 40)}  {printable(caption, 80)}  {printable(group.note, 60)}"

    @on(GroupList.Chosen)
    def _group_chosen(self) -> None:
        self._show_group()

    def _show_group(self, pair: int = 0) -> None:
        groups = self.query_one(GroupList)
        self._group = self._read_line(self._kind, groups.cursor) if groups.count else _NO_GROUP
        self._pair = pair
        self._show_pair()

    def _show_pair(self) -> None:
        """Up to four images around the selected pair, the selected first where there are more."""
        group = self._group
        images = list(dict.fromkeys(image for image, _ in group.pairs))
        first = max(0, images.index(group.pairs[self._pair][0]) - THUMBNAILS + 1) if group.pairs else 0
        for number in range(THUMBNAILS):
            view = self.query_one(f"#thumbnail-{number}", ImageView)
            there = first + number < len(images)
            view.show(self._place_of(images[first + number]) if there else None)
            view.display = there
        width, height = self.query_one("#group").content_size
        self.query_one("#group-text", Static).update(self._group_text(width, max(1, height // 2 - 3)))

    def on_resize(self) -> None:
        self.call_after_refresh(self._show_pair)

    def _group_text(self, width: int, lines: int) -> Text:
        """A line for each of so many pairs around the selected one, whose caption is whole."""
        group, text = self._group, Text()
        if not group.pairs:
            return Text(printable(group.note))
        first = max(0, min(self._pair - lines // 2, len(group.pairs) - lines))
        for number, (image, caption) in enumerate(group.pairs[first : first + lines], start=first):
            chosen = number == self._pair
            text.append("> " if chosen else "  ", GREEN)
            if (image, caption) in self._flagged:
                text.append("flagged ", RED)
            name = printable(Path(image).name, 40)
            text.append(printable(caption, 300 if chosen else max(8, width - len(name) - 14)), "bold" if chosen else "")
            text.append(f"  {name}\n", "dim")
        text.append(f"{self._pair + 1} of {plural(len(group.pairs), 'pair')}  {printable(group.note, 200)}", "dim")
        return text

    def action_pair(self, by: int) -> None:
        """To another pair of the group."""
        if self._group.pairs:
            self._pair = (self._pair + by) % len(self._group.pairs)
            self._show_pair()

    def copied_finding(self) -> str | None:
        return "\t".join(self._group.pairs[self._pair]) if self._group.pairs else None

    def open_finding(self) -> None:
        """The selected pair, large."""
        if self._group.pairs:
            image, caption = self._group.pairs[self._pair]
            self.app.push_screen(FoundPair(image, caption, self._group.note, self._place_of(image)))

    def _place_of(self, image: str) -> Path:
        """Where the image can be opened."""
        return self._findings.image(image) if self._findings else Path(image)

    # ------------------------------------------------------------ flags

    def flag_selected(self) -> None:
        """Flag the selected pair, or take its flag away."""
        if self._group.pairs:
            self.toggle_flag(self._group.pairs[self._pair])

    def toggle_flag(self, pair: Pair) -> None:
        self._change_flags([pair], flag=pair not in self._flagged)

    def flag_kind(self) -> None:
        """Flag every pair of this finding but those that stay; take their flags away where all have one."""
        found, kind = self._findings, self._kind
        if found is not None and found.checked.findings:
            self._flag_groups(found, kind)

    @work(name="flag-kind", group="flags", exclusive=True)
    async def _flag_groups(self, found: FindingsFile, kind: int) -> None:
        def pairs() -> list[Pair]:
            groups = (found.group(kind, place) for place in range(len(found.lines[kind])))
            return list(dict.fromkeys(pair for group in groups for pair in group.pairs[group.keep :]))

        chosen = await asyncio.to_thread(pairs)
        if not chosen:
            self.clip.say("This finding has no pairs to leave out.", severity="warning")
        elif not self.closing:
            flag = not self._flagged.issuperset(chosen)
            changed = [pair for pair in chosen if (pair in self._flagged) != flag]
            if len(changed) > 1:
                title = found.checked.findings[kind].title
                question = _question(title, len(changed), found.checked.pairs, flag=flag)
                self.app.push_screen(question, partial(self._kind_answered, changed, flag))
            else:
                self._change_flags(changed, flag=flag)

    def _kind_answered(self, pairs: Sequence[Pair], flag: bool, answer: str | None) -> None:
        if answer is not None:
            self._change_flags(pairs, flag=flag)

    @work(name="change-flags", group="change-flags")
    async def _change_flags(self, pairs: Sequence[Pair], *, flag: bool, run: Path | None = None) -> None:
        """Flag pairs, or take their flags away; `run`: that of a change which is taken back."""
        back, run = run is not None, run or self._checked_run
        if run is None:
            return
        changed = pairs if back else [pair for pair in pairs if (pair in self._flagged) != flag]
        flagged = await self.flags_after(run, lambda reader: reader.change_flags(changed, flag=flag))
        if flagged is None:
            return
        self._flags_came(run, flagged)
        if back:
            return
        done = f"{plural(len(changed), 'pair')} {'flagged' if flag else 'no longer flagged'}"
        self.did(done, partial(self._take_back, run, changed, flag=not flag))
        where = f"{len(flagged):,} in {RunPaths(run).flags} (clip-train --leave-out); u takes it back."
        self.clip.say(f"{done}; {where}")

    def _take_back(self, run: Path, pairs: Sequence[Pair], *, flag: bool) -> None:
        self._change_flags(pairs, flag=flag, run=run)

    @work(name="read-flags", group="read-flags", exclusive=True)
    async def _read_flags(self, run: Path) -> None:
        if (flagged := await self.flags_after(run, RunReader.flags)) is not None:
            self._flags_came(run, flagged)

    def _flags_came(self, run: Path, flagged: frozenset[Pair]) -> None:
        if run == self._checked_run and not self.closing:
            self._flagged = flagged
            self.query_one(GroupList).refresh()
            self._show_pair()


def _question(title: str, number: int, total: int, *, flag: bool) -> Confirm:
    """Flags of a whole finding may be those of nearly every pair, as with the captions of class folders."""
    title = printable(title, 40)
    if flag:
        text = f"{number:,} of {plural(total, 'pair')} will be flagged as bad; --leave-out trains without them."
        return Confirm(f"Flag all: {title}", text, {"y": "flag them"})
    text = f"{plural(number, 'pair')} will no longer be flagged."
    return Confirm(f"Take flags back: {title}", text, {"y": "take them back"})


class FoundPair(ModalScreen[None]):
    """One pair, large; Escape, Enter or q closes it."""

    PAGE = "pair"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss", "Close")]

    def __init__(self, image: str, caption: str, note: str, place: Path | None = None) -> None:
        """`place`: where the image can be opened, if that is not its path."""
        super().__init__()
        self._image, self._place = image, place or Path(image)
        self._text = Text(printable(caption), "bold")
        self._text.append(f"\n{printable(image)}", "dim").append(f"\n{printable(note)}" if note else "", "dim")

    def compose(self) -> ComposeResult:
        with Vertical(classes="pair-large") as box:
            box.border_title = Text(printable(Path(self._image).name, 60) or "Image")  # as text, which is never markup
            box.border_subtitle = "esc closes"
            yield ImageView(self._place)
            yield Static(self._text, markup=False, classes="pair-text")
