"""What every screen shares: the bar of the run, the tabs, the footer, and what stands there when there is no room."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import Screen
from textual.widgets import Static

from clip_core.errors import RunError
from clip_core.run.reader import RunReader
from clip_core.run.records import Flags
from clip_tui.watcher import Snapshot
from clip_tui.widgets.keys import KeyFooter
from clip_tui.widgets.run_bar import RunBar, TabBar

if TYPE_CHECKING:
    from clip_tui.app import ClipApp

SMALLEST = (60, 15)


class TooSmall(Static):
    """Covers the screen in a terminal below 60 x 15."""

    def __init__(self) -> None:
        super().__init__("", markup=False)

    def on_resize(self) -> None:
        width, height = self.app.size
        least = f"{SMALLEST[0]}x{SMALLEST[1]}"
        self.update(Text(f"too small: {width}x{height}\nclip-tui needs {least}", justify="center"))


class Page(Screen[None]):
    """A screen about the open run. `PAGE` is its scope in the table of actions."""

    PAGE: ClassVar[str] = ""
    AUTO_FOCUS = ""  # a field that is typed into would swallow the keys; / leads to it
    _offered: Sequence[tuple[str, bool]] = ()

    @property
    def clip(self) -> "ClipApp":
        return cast("ClipApp", self.app)

    @property
    def snapshot(self) -> Snapshot | None:
        """The open run, as it was read last."""
        return self.clip.snapshot

    @property
    def closing(self) -> bool:
        """The app is leaving: a worker that comes back from a thread finds no widgets any more."""
        return not self.app.is_running

    def compose(self) -> ComposeResult:
        yield RunBar(markup=False)
        yield TabBar(self.PAGE)
        with Vertical(id="body"):
            yield from self.body()
        yield KeyFooter(show_command_palette=False, compact=True)
        yield TooSmall()

    def body(self) -> ComposeResult:
        """What stands between the tabs and the footer."""
        yield from ()

    def on_mount(self) -> None:
        self.watch(self.app, "snapshot", self._snapshot_came, init=False)

    def on_screen_resume(self) -> None:
        self.call_after_refresh(self._show_again)

    def on_resize(self) -> None:
        self.call_after_refresh(self._show_again)

    def _show_again(self) -> None:
        """Once the sizes are known; by then the run may have been read again."""
        self._snapshot_came(self.snapshot)

    def _snapshot_came(self, snapshot: Snapshot | None) -> None:
        if self.is_current and self.is_mounted:
            self._show_bar(snapshot)
            self.run_came(snapshot)
            self._offer_keys()

    def _offer_keys(self) -> None:
        """Let the footer follow what is possible now; it is made anew only when that changed."""
        offered = [(key, active.enabled) for key, active in self.active_bindings.items()]
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def _show_bar(self, snapshot: Snapshot | None) -> None:
        self.query_one(RunBar).show(snapshot, str(self.clip.root))

    def copied(self) -> str | None:
        """What `y` copies: what is selected here."""
        return str(self.snapshot.path) if self.snapshot else None

    def did(self, what: str, back: Callable[[], None]) -> None:
        """Something was changed here; Ctrl-Z on this screen calls `back`, which may raise RunError and OSError."""
        self.clip.undo.did(self.PAGE, what, back)

    async def flags_after(self, run: Path, work: Callable[[RunReader], Flags]) -> frozenset[tuple[str, str]] | None:
        """The pairs (image, caption) in flags.json once it was read or changed; None after saying why it cannot be."""
        reader = RunReader(run)
        try:
            flags = await asyncio.to_thread(work, reader)
        except RunError as error:
            self.clip.say_problem(error)
            return None
        except OSError as error:
            self.clip.say_problem(RunError(f"cannot write {reader.paths.flags} ({error.strerror}); check its folder."))
            return None
        return frozenset((pair.image, pair.caption) for pair in flags.pairs)

    def run_came(self, snapshot: Snapshot | None) -> None:
        """The open run was read again, or the screen came to the front."""

    @on(TabBar.Chosen)
    def _tab_chosen(self, message: TabBar.Chosen) -> None:
        self.clip.action_go(message.page)

    def key_escape(self) -> None:
        """Leave a field that is typed into, so that the keys mean actions again."""
        self.set_focus(None)
