"""The Retrieve screen: texts and images, weighted, searched in a gallery with one model or two beside each other."""

import random
from functools import partial
from pathlib import Path

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import DataTable, Input, Static

from clip_core.errors import UsageError
from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.commands import near
from clip_tui.encoder import Model
from clip_tui.found import (
    COLUMNS,
    COMPARED,
    column_widths,
    expected,
    refuse_results,
    right_line,
    rows_of,
    table_row,
    write_results,
)
from clip_tui.gallery import Place
from clip_tui.numbers import number
from clip_tui.query import parse_query
from clip_tui.screens.detail import Detail, DetailScreen
from clip_tui.screens.dialogs import Prompt
from clip_tui.screens.query_page import QueryPage
from clip_tui.widgets.bars import Bar, Bars
from clip_tui.widgets.image_view import ImageView
from clip_tui.widgets.keys import Rows
from clip_tui.widgets.results import Found, Results

FETCHED = 600  # results of the first answer; ten times as many when their end is reached
TEXTS_SHOWN = 20  # captions a page
ROWS = 200  # of the table a page
DETAIL = 46  # columns of the panel beside it, in the style sheet
_HELP = """x  a random caption or image of the gallery
/  your own query: a text, the path of an image, or several with weights: a dog + snow - 0.5*grass
g  the gallery: validation set, training set, a folder, a stored gallery
c  another model beside this one"""


class RetrieveScreen(QueryPage):
    """One field for the query; t switches between searching images and searching captions."""

    PAGE = "retrieve"
    BINDINGS = bindings("retrieve")

    def __init__(self) -> None:
        super().__init__()
        self.from_text = True  # images are searched, else captions
        self.found: list[Found] = []
        self.selected = 0
        self.as_table = False
        self._fetched = FETCHED
        self._queried = ("", True)  # what was asked last, and whether for images
        self._queried_run: Path | None = None
        self._to_write: Path | None = None  # once all results are there
        self._random = random.Random(0)

    def body(self) -> ComposeResult:
        with Horizontal(classes="query-line"):
            yield Static("", markup=False, id="direction")
            yield Input(id="query", compact=True)
        yield from self.sources()
        yield Static("", markup=False, id="searched")
        yield Static(_HELP, markup=False, id="nothing-asked")
        with Horizontal(id="answer"):
            yield Results(id="images")
            with Horizontal(id="texts"):
                yield ImageView(id="query-image")
                with VerticalScroll():
                    yield Bars(id="found-texts")
            yield Rows(id="table", cursor_type="row")
            yield Detail(id="detail")

    def on_mount(self) -> None:
        super().on_mount()
        self._show()

    def on_resize(self) -> None:
        if self.as_table:
            self.call_after_refresh(self._fill_table)

    def gallery_came(self) -> None:
        """Ask it what the one before it was asked, unless something else is being typed."""
        self.found = []
        self._show()
        now = (self.query_one("#query", Input).value, self.from_text)
        asked = bool(now[0]) and now == self._queried and self._queried_run == self._run
        if asked and self.query_sent is None and not isinstance(self.focused, Input) and self.gallery.images:
            self._search()

    def still_reading(self) -> None:
        self._show_placeholder()
        self._show_searched()

    # ------------------------------------------------------------ what is shown

    def _show(self) -> None:
        answered = bool(self.found) or (self.query_sent is not None and bool(self.answers))
        images, as_table = self.from_text, self.as_table
        self.query_one("#nothing-asked").display = not answered
        self.query_one("#answer").display = answered
        self.query_one("#images").display = images and not as_table
        self.query_one("#texts").display = not images and not as_table
        self.query_one("#table").display = as_table
        self.query_one("#detail").set_class(as_table or images, "-shown")
        self.query_one("#direction", Static).update("→ images" if images else "→ captions")
        self._show_placeholder()
        self._show_page()

    def _show_placeholder(self) -> None:
        known = len(self.gallery.images if self.from_text else self.gallery.captions)
        what, query = ("images", "text or image") if self.from_text else ("captions", "image or text")
        where = f"{number(known)} {what}" if known else f"the {self.place.label}"
        self.query_one("#query", Input).placeholder = f"{query} to match against {where} (/ to type)"

    def _show_page(self) -> None:
        found = self.found
        if self.as_table:
            self._fill_table()
        elif self.from_text:
            self.query_one("#images", Results).show(found, self.selected)
        else:
            page = found[self.first : self.first + TEXTS_SHOWN]
            self.query_one("#found-texts", Bars).show(
                [Bar(row.item, max(0.0, row.similarity), f"{row.similarity:.3f}", right=row.right) for row in page],
                first=self.first + 1,
            )
        self._show_detail()
        self._show_searched()

    def _fill_table(self) -> None:
        table = self.query_one("#table", DataTable)
        page = self.found[self.first : self.first + ROWS]
        compared = any(row.other is not None for row in page)
        table.clear(columns=True)
        names = [name for name in (COMPARED if compared else COLUMNS) if name != "captions" or self.from_text]
        rows = [table_row(row, compared=compared)[: len(names)] for row in page]
        room = self.size.width - 2 - (DETAIL if "-wide" in self.classes else 0)  # a table not laid out yet has no width
        for name, width in zip(names, column_widths(names, rows, room), strict=True):
            table.add_column(name, key=name, width=width)
        for row, cells in zip(page, rows, strict=True):
            table.add_row(*cells, key=str(row.rank))
        if page:
            table.move_cursor(row=self.selected - self.first)

    def _show_detail(self) -> None:
        row = self.found[self.selected] if self.selected < len(self.found) else None
        self.query_one("#detail", Detail).show(row, image=self.from_text)

    def _show_searched(self) -> None:
        """Gallery, page, and the rank of the right answer."""
        line = self.query_one("#searched", Static)
        line.set_class(bool(self.gallery.note), "problem")
        if self.gallery.note:
            line.update(self.gallery.note)
            return
        if self.reading:
            line.update(Text(self.reading, "dim"))
            return
        parts = [self.place.label]
        answered = self.answered()
        if answered and self.found:
            last = min(len(self.found), self.first + self.page_size)
            total = answered[0].result.get("total", len(self.found))
            parts.append(f"{self.first + 1:,}–{last:,} of {total:,}")
            if answered[0].result.get("skipped"):
                parts.append(f"{answered[0].result['skipped']:,} unreadable images left out")
            parts.append(right_line(answered))
        line.update(Text(" · ".join(part for part in parts if part), "dim"))

    @property
    def page_size(self) -> int:
        if self.as_table:
            return ROWS
        return self.query_one("#images", Results).page_size if self.from_text else TEXTS_SHOWN

    @property
    def first(self) -> int:
        """Index of the first result of the page."""
        return self.selected // self.page_size * self.page_size

    # ------------------------------------------------------------ asking

    @on(Input.Submitted, "#query")
    def _submitted(self) -> None:
        field = self.query_one("#query", Input)
        now = (field.value, self.from_text)
        if now != self._queried:
            self.clip.undo.forget_typing(field)  # the query is one change, however it was typed
            self.did("the query", partial(self._query_again, *self._queried))
        self._queried = now
        self._queried_run = self._run
        self._fetched, self._to_write = FETCHED, None
        self._search()

    def _query_again(self, typed: str, from_text: bool) -> None:
        """What was asked before."""
        self.from_text = from_text
        self._forget()
        self.found, self.selected, self._queried = [], 0, (typed, from_text)
        self.query_one("#query", Input).value = typed
        self._show()
        self.show_sources()
        self._fetched, self._to_write = FETCHED, None
        self._search()

    def _search(self) -> None:
        terms = parse_query(self.query_one("#query", Input).value, self.gallery)
        if not terms:
            return
        if not (self.gallery.images if self.from_text else self.gallery.captions):
            what = "images" if self.from_text else "captions"
            yet = " yet" if self.place == Place() else ""
            self.clip.say(self.missing(f"The gallery has no {what}{yet}; g chooses another."), severity="warning")
            return
        self.set_focus(self.query_one("#images" if self.from_text and not self.as_table else "#table"))
        image = next((term.image for term in terms if term.image), None)
        self.query_one("#query-image", ImageView).show(Path(image) if image else None)
        self.query_one("#query-image").display = image is not None
        self.selected = 0 if self._fetched == FETCHED else self.selected
        searched = {"images": list(self.gallery.images)} if self.from_text else {"texts": list(self.gallery.captions)}
        right = expected(terms, self.gallery, images=self.from_text)
        asked = [term.asked() for term in terms]
        self.ask({"op": "search", "terms": asked, **searched, "expected": right, "top_k": self._fetched})

    def answers_changed(self, model: Model) -> None:
        answered = self.answered()
        if not answered or self.query_sent is None:
            return
        other = answered[1] if len(answered) > 1 else None
        self.found = rows_of(answered[0], self.gallery, self.query_sent["expected"], other)
        self.selected = min(self.selected, max(0, len(self.found) - 1))
        self._show()
        if self._to_write is not None and len(self.found) >= answered[0].result.get("total", 0):
            self._write_all(self._to_write)

    def _models_changed(self) -> None:
        if self.is_current:
            self.as_table = self.clip.second is not None
        super()._models_changed()
        if self.is_current:
            self._show()

    @on(Results.Selected)
    def _card_selected(self, message: Results.Selected) -> None:
        self.selected = message.index
        self._show_detail()
        self._show_searched()

    @on(DataTable.RowHighlighted, "#table")
    def _row_highlighted(self, message: DataTable.RowHighlighted) -> None:
        if message.row_key.value is not None and self.as_table:
            self.selected = min(int(message.row_key.value) - 1, max(0, len(self.found) - 1))
            self._show_detail()

    @on(DataTable.RowSelected, "#table")
    def _row_selected(self) -> None:
        self.action_detail()

    @on(Results.NeedsMore)
    def _more(self) -> None:
        total = next((self.answers[model].result.get("total", 0) for model in self.models()[:1]), 0)
        if len(self.found) < total:
            self._fetched *= 10
            self._search()

    def copied(self) -> str | None:
        return self.found[self.selected].item if self.selected < len(self.found) else None

    # ------------------------------------------------------------ actions

    def action_query(self) -> None:
        self.set_focus(self.query_one("#query", Input))

    def action_turn(self) -> None:
        self.did("the other direction", partial(self._query_again, *self._queried))
        self._query_again("", not self.from_text)

    def action_random(self) -> None:
        known = self.gallery.captions if self.from_text and self.gallery.captions else self.gallery.images
        if not known:
            self.clip.say(self.missing("The run has no validation pairs yet."), severity="warning")
            return
        choice = self._random.choice(known)
        is_text = self.from_text and bool(self.gallery.captions)
        self.query_one("#query", Input).value = _as_typed(choice) if is_text else near(Path(choice))
        self._submitted()

    def action_view(self) -> None:
        self.as_table = not self.as_table
        self._show()
        if self.found:
            self.set_focus(self.query_one("#table" if self.as_table else "#images"))

    def action_page(self, by: int) -> None:
        """The next or the previous page of results."""
        index = self.first + by * self.page_size
        if index >= len(self.found):
            self._more()
        elif index >= 0:
            self.selected = index
            self._show_page()

    def action_right(self) -> None:
        """To the right answer, wherever it is."""
        answer = next((self.answers[model] for model in self.models()[:1] if model in self.answers), None)
        ranks = answer.result.get("ranks") if answer else None
        if not ranks:
            self.clip.say("The gallery does not say which answer is right.", severity="warning")
            return
        rank = int(min(ranks.values())[0])
        self.selected = rank - 1
        if rank > len(self.found):
            self._fetched = max(rank, self._fetched * 10)
            self._search()
        else:
            self._show_page()

    def action_detail(self) -> None:
        if self.query_sent is not None and not self.answered():
            self.clip.say("The model has not answered yet; what is shown answers an earlier query.", severity="warning")
            return
        if self.selected < len(self.found):
            row = self.found[self.selected]
            self.app.push_screen(DetailScreen(row, image=self.from_text), self._detail_left)

    def _detail_left(self, where: str | None) -> None:
        if where is not None:
            by = 1 if where == "next" else -1
            self.selected = max(0, min(len(self.found) - 1, self.selected + by))
            self._show_page()
            self.action_detail()

    def action_like(self) -> None:
        """Search with the selected image: image to image."""
        if not self.from_text or self.selected >= len(self.found):
            self.clip.say("Select an image first.", severity="warning")
            return
        self.query_one("#query", Input).value = near(Path(self.found[self.selected].item))
        self._submitted()

    def action_write(self) -> None:
        if self.found:
            self.app.push_screen(Prompt("Write the results", "retrieval.csv", "NAME.csv or NAME.json"), self._write)
        else:
            self.clip.say("There are no results to write yet.", severity="warning")

    def _write(self, typed: str | None) -> None:
        answer = next(iter(self.answered()), None)
        if not typed or answer is None:
            return
        path, total = Path(typed.strip()).expanduser(), answer.result.get("total", len(self.found))
        if len(self.found) >= total:
            self._write_all(path)
            return
        try:
            refuse_results(path)
        except UsageError as error:
            self.clip.say_problem(error)
            return
        self.clip.say(f"All {total:,} results are asked for, and then written to {path}.")
        self._to_write, self._fetched = path, total
        self._search()

    def _write_all(self, path: Path) -> None:
        self._to_write = None
        try:
            write_results(path, self.query_sent or {}, self.answered()[0].source, self.found)
        except UsageError as error:
            self.clip.say_problem(error)
        else:
            self.clip.say(f"{len(self.found):,} results written to {path}.")


def _as_typed(caption: str) -> str:
    """A caption as one term of the query line."""
    safe = printable(caption)
    return f'"{safe}"' if " + " in safe or " - " in safe or "*" in safe else safe
