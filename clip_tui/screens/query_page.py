"""What Retrieve and Classify share: the run's gallery, one query at a time, and the answers of both backends."""

import asyncio
from pathlib import Path
from typing import Any

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.widgets import Static

from clip_core.errors import BackendError
from clip_core.text import printable
from clip_tui.encoder import BACKENDS, Answer, Backend
from clip_tui.gallery import Gallery, read_gallery
from clip_tui.screens.page import Page
from clip_tui.theme import BLUE, GREEN
from clip_tui.watcher import Snapshot


class QueryPage(Page):
    """Holds the current query and the answer of each backend to it."""

    def __init__(self) -> None:
        super().__init__()
        self.gallery = Gallery()
        self.query_sent: dict[str, Any] | None = None
        self.answers: dict[Backend, Answer] = {}
        self._run: Path | None = None

    def sources(self) -> ComposeResult:
        """A line for each backend: the model that it answered with, or what went wrong."""
        for backend in BACKENDS:
            yield Static("", markup=False, id=f"source-{backend}", classes="source")
        yield Static("", markup=False, id="stale-bundle")

    def on_mount(self) -> None:
        super().on_mount()
        self.watch(self.app, "backend", self._backend_changed, init=False)

    def run_came(self, snapshot: Snapshot | None) -> None:
        """Read the gallery of a run that is new here; it may not have been written yet."""
        path = snapshot.path if snapshot else None
        if path != self._run or (path is not None and not self.gallery.images):
            changed, self._run = path != self._run, path
            if changed:
                self.query_sent, self.answers, self.gallery = None, {}, Gallery()
            if path is not None:
                self._load(path, changed)
        self.show_sources()
        self._show_stale(snapshot.stale_bundle if snapshot else None)

    def _show_stale(self, stale: str | None) -> None:
        line = self.query_one("#stale-bundle", Static)
        line.display = stale is not None
        line.update(f"onnx is older: {stale}" if stale else "")

    @work(name="gallery", group="gallery", exclusive=True)
    async def _load(self, run: Path, changed: bool) -> None:
        gallery = await asyncio.to_thread(read_gallery, run)
        if (changed or gallery.images) and not self.closing:
            self.gallery = gallery
            self.gallery_came()

    def gallery_came(self) -> None:
        """The validation pairs of the open run have been read."""

    def answer_came(self, answer: Answer) -> None:
        """The selected backend answered the current query."""

    # ------------------------------------------------------------ queries

    def ask(self, query: dict[str, Any]) -> None:
        """Send a query to the selected backend; an earlier one without an answer is dropped."""
        if query != self.query_sent:
            self.query_sent, self.answers = query, {}
        self._ask(self.clip.backend)

    @work(name="query", group="query", exclusive=True)
    async def _ask(self, backend: Backend) -> None:
        if self._run is None or self.query_sent is None:
            return
        self._show_line(backend, "asking …")
        try:
            answer = await self.clip.encoders.ask(self._run, backend, **self.query_sent)
        except BackendError as error:
            if not self.closing:
                self.show_sources()
                self._show_line(backend, printable(str(error)), problem=True)
            return
        if self.closing:
            return
        self.answers[backend] = answer
        self.show_sources()
        self.answer_came(answer)

    def _backend_changed(self) -> None:
        self.show_sources()
        if self.is_current and self.query_sent is not None:
            self.ask(self.query_sent)

    # ------------------------------------------------------------ the lines of the backends

    def show_sources(self) -> None:
        for backend in BACKENDS:
            line = self.query_one(f"#source-{backend}", Static)
            if backend in self.answers:
                line.update(self._source_text(self.answers[backend]))
            elif not line.has_class("problem") or self.query_sent is None:
                hint = "press b to use" if backend != self.clip.backend else ""
                line.update(_source_line(backend, hint, chosen=backend == self.clip.backend))
                line.remove_class("problem")

    def _source_text(self, answer: Answer) -> Text:
        self.query_one(f"#source-{answer.backend}", Static).remove_class("problem")
        source = f"{answer.source}  {1000 * answer.seconds:.0f} ms"
        text = _source_line(answer.backend, source, chosen=answer.backend == self.clip.backend)
        if len(self.answers) == len(BACKENDS) and answer.backend == self.clip.backend:
            first, second = (self.answers[backend].result for backend in BACKENDS)
            text.append("  " + agreement(first, second), f"bold {GREEN}")
        return text

    def _show_line(self, backend: Backend, sentence: str, *, problem: bool = False) -> None:
        line = self.query_one(f"#source-{backend}", Static)
        line.set_class(problem, "problem")
        line.update(_source_line(backend, sentence, chosen=True, problem=problem))


def _source_line(backend: Backend, rest: str, *, chosen: bool, problem: bool = False) -> Text:
    sign, style = ("●", f"bold {BLUE}") if chosen else ("○", "dim")
    text = Text(no_wrap=not problem, overflow="ellipsis").append(f"{sign} {backend:<6}", style)
    return text.append(printable(rest), "" if chosen else "dim")


def agreement(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Whether two backends rank alike, and the largest difference of their scores."""
    names, values = _ranking(first)
    others, other_values = _ranking(second)
    score_of = dict(zip(others, other_values, strict=False))
    differences = [abs(value - score_of[name]) for name, value in zip(names, values, strict=False) if name in score_of]
    order = "same order" if names == others else "same first" if names[:1] == others[:1] else "different order"
    return f"{order}, max |Δ| {max(differences):.0e}" if differences else order


def _ranking(result: dict[str, Any]) -> tuple[list[str], list[float]]:
    names = result.get("images") or result.get("texts") or result.get("classes") or []
    return list(names), list(result.get("similarities") or result.get("probabilities") or [])
