"""What Retrieve and Classify share: the gallery, one query at a time, and the answers of one or two models."""

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.widgets import Static

from clip_core.errors import BackendError
from clip_core.text import printable
from clip_tui.encoder import Answer, Model, model_of, other
from clip_tui.gallery import Gallery, Place, read_gallery, stored_galleries
from clip_tui.models import model_choices
from clip_tui.screens.dialogs import Choice, Chooser, Prompt
from clip_tui.screens.page import Page
from clip_tui.theme import BLUE, GREEN, YELLOW
from clip_tui.watcher import Snapshot

TICK_SECONDS = 0.5
_FOLDER = Place("folder")  # of the list of galleries: a folder whose path is typed


class QueryPage(Page):
    """Holds the current query and each model's answer to it; two models are asked beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.gallery = Gallery()
        self.place = Place()
        self.query_sent: dict[str, Any] | None = None
        self.answers: dict[Model, Answer] = {}
        self.problems: dict[Model, str] = {}
        self._doing: dict[Model, tuple[str, float]] = {}  # what a model does, and since when
        self._asked: dict[int, tuple[Model, dict[str, Any]]] = {}  # by slot, what is on its way
        self._run: Path | None = None
        self._reading: tuple[float, float] | None = None  # since when the gallery is read, and the share that is
        self._unseen = False  # one that is only looked for again; the page does not say so

    def sources(self) -> ComposeResult:
        """A line for each model: what it answered with, what it does, or what went wrong."""
        for slot in range(2):
            yield Static("", markup=False, id=f"source-{slot}", classes="source")
        yield Static("", markup=False, id="stale-bundle")

    def on_mount(self) -> None:
        super().on_mount()
        self.watch(self.app, "backend", self._models_changed, init=False)
        self.watch(self.app, "second", self._models_changed, init=False)
        self.set_interval(TICK_SECONDS, self._tick)

    def run_came(self, snapshot: Snapshot | None) -> None:
        """Read the gallery of a run that is new here; it may not have been written yet."""
        path = snapshot.path if snapshot else None
        nothing = not self.gallery.images and self.gallery.note is None and self._reading is None
        if path != self._run or (path is not None and nothing):
            changed, self._run = path != self._run, path
            if changed:
                self.place, self.gallery, self._reading = Place(), Gallery(), None
                self._forget()
            if path is not None:
                self._reading, self._unseen = (time.monotonic(), 0.0), not changed  # so that it does not begin twice
                self._load(path, changed)
        self.show_sources()
        self._show_stale(snapshot.stale_bundle if snapshot else None)

    def _show_stale(self, stale: str | None) -> None:
        line = self.query_one("#stale-bundle", Static)
        line.display = stale is not None
        line.update(f"onnx is older: {stale}" if stale else "")

    @work(name="gallery", group="gallery", exclusive=True)
    async def _load(self, run: Path, changed: bool) -> None:
        """Read the gallery. One that is not there yet is looked for again with each change of the run, unseen."""
        started = time.monotonic()

        def read_so_far(done: int, size: int) -> None:
            if self._reading is not None and self._reading[0] == started:
                self._reading = started, done / max(1, size)

        self._reading, self._unseen = (started, 0.0), not changed
        if changed:
            self.still_reading()
        gallery = await asyncio.to_thread(read_gallery, run, self.place, read_so_far)
        if self._reading is not None and self._reading[0] == started:
            self._reading = None
        if (changed or gallery.images or gallery.note) and not self.closing:
            self.gallery = gallery
            self.gallery_came()

    @property
    def reading(self) -> str:
        """`reading the training set, 40 %, 3 s` while the gallery is read, else nothing."""
        if self._reading is None or self._unseen:
            return ""
        since, share = self._reading
        read = f", {share:.0%}" if share else ""
        return f"reading the {self.place.label}{read}, {time.monotonic() - since:.0f} s"

    def missing(self, otherwise: str) -> str:
        """Why there is nothing to search: it cannot be read, is being read, or `otherwise`."""
        return self.gallery.note or (f"Still {self.reading}." if self.reading else otherwise)

    def gallery_came(self) -> None:
        """The gallery has been read."""

    def still_reading(self) -> None:
        """The gallery is being read, as `reading` says."""

    def answers_changed(self, model: Model) -> None:
        """A model answered the current query, or failed to where another one answered."""

    def answered(self) -> list[Answer]:
        """The answers in the order of the models; none while the first model has neither answered nor failed, so that
        the second one's answer never stands in its place.
        """
        models = self.models()
        if models and models[0] not in self.answers and models[0] not in self.problems:
            return []
        return [self.answers[model] for model in models if model in self.answers]

    def _forget(self) -> None:
        self.query_sent, self.answers, self.problems, self._doing = None, {}, {}, {}

    # ------------------------------------------------------------ models and queries

    def models(self) -> list[Model]:
        """The model that is asked, and the one that it is compared with, if any."""
        if self._run is None:
            return []
        first, second = model_of(self._run, self.clip.backend), self.clip.second
        return [first, second] if second is not None and second != first else [first]

    def ask(self, query: dict[str, Any]) -> None:
        """Send a query to the models; an earlier one without an answer is dropped, the same one goes on."""
        if query != self.query_sent:
            self._forget()
            self.query_sent = query
        for slot, model in enumerate(self.models()):
            asked, sent = self._asked.get(slot, (None, None))
            if model not in self.answers and not (asked == model and sent is self.query_sent):
                self.problems.pop(model, None)
                self._asked[slot] = model, self.query_sent
                (self._ask_second if slot else self._ask_first)(model)
        self.show_sources()

    @work(name="query", group="query", exclusive=True)
    async def _ask_first(self, model: Model) -> None:
        await self._ask(model, 0)

    @work(name="comparison", group="comparison", exclusive=True)
    async def _ask_second(self, model: Model) -> None:
        await self._ask(model, 1)

    async def _ask(self, model: Model, slot: int) -> None:
        query = self.query_sent
        if query is None:
            return
        self._does(model, "asking")
        try:
            answer = await self.clip.encoders.ask(model, progress=partial(self._does, model), **query)
        except BackendError as error:
            if not self.closing and query is self.query_sent:
                self.problems[model] = printable(str(error))
                if self.answers:
                    self.answers_changed(model)
        else:
            if not self.closing and query is self.query_sent:
                self.answers[model] = answer
                if answer.note:
                    self.clip.say(answer.note, severity="warning")
                self.answers_changed(model)
        finally:
            if self._asked.get(slot) == (model, query):
                del self._asked[slot]
            if all(asked != model for asked, _ in self._asked.values()):  # else its next query is on its way already
                self._doing.pop(model, None)
            if not self.closing:
                self.show_sources()

    def _does(self, model: Model, what: str) -> None:
        since = self._doing[model][1] if model in self._doing else time.monotonic()
        self._doing[model] = (what, since)
        if not self.closing and self.is_mounted:
            self.show_sources()

    def _tick(self) -> None:
        if self._doing and self.is_current:
            self.show_sources()
        if self.reading and self.is_current:
            self.still_reading()

    def _models_changed(self) -> None:
        if not self.is_current:
            return
        self.show_sources()
        if self.query_sent is not None:
            self.ask(self.query_sent)
            first = self.models()[:1]
            if first and first[0] in self.answers:
                self.answers_changed(first[0])

    # ------------------------------------------------------------ the lines of the models

    def show_sources(self) -> None:
        models = self.models()
        for slot in range(2):
            line = self.query_one(f"#source-{slot}", Static)
            model = models[slot] if slot < len(models) else None
            line.set_class(model in self.problems, "problem")
            line.update(self._source_text(model, slot) if model else self._other_backend())

    def _source_text(self, model: Model, slot: int) -> Text:
        if model in self.problems:
            return source_line(model.name, self.problems[model], chosen=slot == 0, problem=True)
        if model in self._doing:
            what, since = self._doing[model]
            return source_line(model.name, f"{what}, {time.monotonic() - since:.0f} s", chosen=slot == 0)
        answer = self.answers.get(model)
        if answer is None:
            return source_line(model.name, "", chosen=slot == 0)
        text = source_line(model.name, _milliseconds(answer.milliseconds), chosen=slot == 0)
        if slot == len(self.models()) - 1 and (agrees := self._agreement()):
            text.append("  " + agrees, f"bold {GREEN}")
        return text.append(f"  {printable(answer.source)}", "dim")  # last: a narrow terminal cuts it

    def _agreement(self) -> str:
        """Of the two models; of one alone with the other backend, where that has answered the same query."""
        models = self.models()
        if len(models) == 1:
            models.insert(0, model_of(models[0].path, other(self.clip.backend)))
        results = [self.answers[model].result for model in models if model in self.answers]
        return agreement(*results) if len(results) == 2 and "predicted" not in results[0] else ""

    def _other_backend(self) -> Text:
        return source_line(other(self.clip.backend), "b switches to it, c compares two models", chosen=False)

    # ------------------------------------------------------------ choices

    def action_compare(self) -> None:
        if self._run is not None:
            first = self.models()[0]
            choices = [choice for choice in model_choices(self._run) if choice.value != first]
            self.app.push_screen(Chooser("Compare with", choices, self.clip.second), self._second_chosen)

    def _second_chosen(self, choice: Choice[Model | None] | None) -> None:
        before = self.clip.second
        if choice is not None and choice.value != before:
            self.did("the second model", lambda: setattr(self.clip, "second", before))
            self.clip.second = choice.value

    def action_gallery(self) -> None:
        choices = [
            Choice(Place("validation"), "validation set", "the pairs that the run was evaluated on"),
            Choice(Place("training"), "training set", "the pairs that the run was trained on"),
            Choice(_FOLDER, "folder", "any folder of images, with or without captions; its path is typed"),
            *(Choice(place, "stored gallery", line) for place, line in stored_galleries()),
        ]
        self.app.push_screen(Chooser("Gallery", choices, self.place), self._place_chosen)

    def _place_chosen(self, choice: Choice[Place] | None) -> None:
        if choice is None:
            return
        if choice.value == _FOLDER:
            self.app.push_screen(Prompt("Folder of images", placeholder="path"), self._folder_typed)
        else:
            self._use(choice.value)

    def _folder_typed(self, typed: str | None) -> None:
        if typed and typed.strip():
            self._use(Place("folder", Path(typed.strip()).expanduser().absolute()))

    def _use(self, place: Place) -> None:
        if self._run is not None and place != self.place:
            self.did("the other gallery", partial(self._use_again, self._run, self.place))
            self._open_place(place)

    def _use_again(self, run: Path, place: Place) -> None:
        if run == self._run:
            self._open_place(place)

    def _open_place(self, place: Place) -> None:
        if self._run is not None:
            self.place, self.gallery = place, Gallery()
            self._forget()
            self._load(self._run, True)
            self.show_sources()


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def source_line(name: str, rest: str, *, chosen: bool, problem: bool = False) -> Text:
    sign, style = ("●", f"bold {BLUE}") if chosen else ("○", "dim")
    text = Text(no_wrap=not problem, overflow="ellipsis").append(f"{sign} {printable(name):<6}", style)
    return text.append(" " + printable(rest), YELLOW if problem else "" if chosen else "dim")


def agreement(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Whether two models rank alike, and the largest difference of their scores."""
    names, values = ranking(first)
    others, other_values = ranking(second)
    score_of = dict(zip(others, other_values, strict=False))
    differences = [abs(value - score_of[name]) for name, value in zip(names, values, strict=False) if name in score_of]
    order = "same order" if names == others else "same first" if names[:1] == others[:1] else "different order"
    return f"{order}, max |Δ| {max(differences):.0e}" if differences else order


def ranking(result: dict[str, Any]) -> tuple[list[str], list[float]]:
    """Names, best first, and their scores."""
    names = result.get("items") or result.get("images") or result.get("classes") or []
    return list(names), list(result.get("similarities") or result.get("probabilities") or [])
