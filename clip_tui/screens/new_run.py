"""A new run: eight settings first, the others by a filter; automatic values previewed; what was typed is kept."""

import asyncio
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.events import DescendantFocus
from textual.widget import Widget
from textual.widgets import Input, Select, Static

from clip_core.config import TITLES, TrainConfig
from clip_core.errors import UsageError
from clip_core.run.paths import is_run
from clip_core.run.records import State
from clip_core.text import printable
from clip_tui import starter
from clip_tui.actions import bindings
from clip_tui.form import FIRST, Field, form_fields, matching, mistakes, nested_values, read_form, values_of
from clip_tui.numbers import number
from clip_tui.screens.dialogs import Confirm
from clip_tui.screens.page import Page
from clip_tui.theme import GREEN, RED
from clip_tui.watcher import overview
from clip_tui.widgets.toggle import Toggle

FIELDS = tuple(form_fields())
BY_ID = {field.id: field for field in FIELDS}
BY_NAME = {field.name: field for field in FIELDS}


class NewRunScreen(Page):
    """Ctrl-S checks the form and starts the trainer; a mistake is shown beside its field, which gets the focus."""

    PAGE = "new"
    BINDINGS = bindings("new")

    def __init__(self, clone: TrainConfig | None = None, of: str = "") -> None:
        """Args: clone, of: the configuration of a run to begin from, and that run's name."""
        super().__init__()
        self._clone, self._of = clone, of
        self._all = False
        self._opened_with: dict[str, Any] = {}
        self._previewed: dict[str, Any] = {}
        self._wrong: dict[str, str] = {}

    def body(self) -> ComposeResult:
        with Horizontal(classes="query-line"):
            yield Static("find", markup=False, classes="query-label")
            yield Input(id="find-setting", placeholder="a part of a setting's name or description", compact=True)
        with VerticalScroll(id="form", can_focus=False) as form:
            form.border_title = Text(f"New run, from {printable(self._of, 40)}" if self._of else "New run")
            first = [BY_NAME[name] for name in FIRST]
            rest = [field for field in FIELDS if field.name not in FIRST]
            for title, fields in (
                ("Most used", first),
                *((TITLES[key], list(group)) for key, group in _sections(rest)),
            ):
                yield Static(title, markup=False, classes="section")
                for field in fields:
                    yield _row(field)
        yield Static("", markup=False, id="hint")
        yield Static("", markup=False, id="mistake")

    def on_mount(self) -> None:
        super().on_mount()
        self._restore()  # before a key can be typed, which it would mix with
        self.set_focus(self.query_one("#data-data_file"))

    def _restore(self) -> None:
        """What was typed the last time, or the cloned settings; and why the run that it started failed, if it did."""
        run, problem = self.clip.settings.draft_run, None
        if run is not None and self._clone is None:
            started = {path.absolute(): process for path, process in self.clip.started().items()}
            before = overview(run, started.get(run))
            problem = before.error if before.state is State.FAILED else None
            if problem is None:  # it trains: the next run is another one
                self._keep_draft({})
        values = values_of(self._clone) if self._clone is not None else dict(self.clip.settings.draft)
        values.pop("run-run_dir", None) if self._clone is not None else None
        with self.prevent(Input.Changed, Select.Changed, Toggle.Changed):
            for name, value in values.items():
                if name in BY_ID and value is not None:
                    self._set(BY_ID[name], value)
        self._opened_with = self.values()
        if run is not None and problem:
            self._say(f"{run.name} failed: {problem}")
        elif values and self._clone is None:
            self.clip.say("What was typed the last time is back; esc asks whether to discard it.")
        self._show_fields()

    # ------------------------------------------------------------ which fields are shown

    def _show_fields(self) -> None:
        """The first eight and those that were changed; with a filter, those that match; or all."""
        typed = self.query_one("#find-setting", Input).value
        found = {field.id for field in matching(typed)} if typed.strip() else None
        shown = 0
        for field in FIELDS:
            if found is not None:
                visible = field.id in found
            else:
                visible = self._all or field.name in FIRST or self._is_changed(field) or field.id in self._wrong
            self.query_one(f"#row-{field.id}").display = visible
            shown += visible
        self._show_sections()
        hidden = len(FIELDS) - shown
        form = self.query_one("#form")
        more = "more: ^f finds one, ^g shows all" if hidden else "^g shows the first eight"
        form.border_subtitle = f"{more} · ^r previews values · ^s starts"

    def _show_sections(self) -> None:
        """A title only where one of its fields is shown."""
        title, any_shown = None, False
        for child in (*self.query_one("#form").children, None):
            if child is None or child.has_class("section"):
                if title is not None:
                    title.display = any_shown
                title, any_shown = child, False
            else:
                any_shown = any_shown or bool(child.display)

    def _is_changed(self, field: Field) -> bool:
        value = self._value(field)
        return value not in (None, "", field.default)

    @on(Input.Changed, "#find-setting")
    def _find_changed(self) -> None:
        self._show_fields()

    @on(Input.Submitted, "#find-setting")
    def _find_done(self) -> None:
        """To the first setting that was found."""
        typed = self.query_one("#find-setting", Input).value.strip()
        shown = [field for field in FIELDS if self.query_one(f"#row-{field.id}").display]
        first = next((field for field in shown if typed in (field.flag, field.name)), shown[0] if shown else None)
        if first is not None:
            self.set_focus(self.query_one(f"#{first.id}"))

    def action_filter(self) -> None:
        self.set_focus(self.query_one("#find-setting"))

    def action_all(self) -> None:
        self._all = not self._all
        self.query_one("#find-setting", Input).value = ""
        self._show_fields()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """The whole description of the field that has the focus; beside the field there may be too little room."""
        field = BY_ID.get(event.widget.id or "")
        if field is not None:
            self._hint(field)

    def _hint(self, field: Field) -> None:
        """The description of a field, and what would be chosen for it: beside it both are cut."""
        text = Text(f"{field.flag}: {field.help}")
        if (chosen := self._chosen(field)).plain:
            text.append(". ").append_text(chosen)
        self.query_one("#hint", Static).update(text)

    # ------------------------------------------------------------ values

    def values(self) -> dict[str, Any]:
        """What is in the form, by `Field.id`."""
        return {field.id: self._value(field) for field in FIELDS}

    def _value(self, field: Field) -> Any:
        widget = self.query_one(f"#{field.id}")
        if isinstance(widget, Select):
            return None if widget.is_blank() else widget.value
        if isinstance(widget, Toggle):
            return widget.value
        assert isinstance(widget, Input)
        return widget.value

    def _set(self, field: Field, value: Any) -> None:
        widget = self.query_one(f"#{field.id}")
        if isinstance(widget, Select) and value not in field.choices:
            return  # of another version
        if isinstance(widget, Toggle):
            widget.value = bool(value)
        elif isinstance(widget, Select | Input):
            widget.value = str(value)

    @on(Input.Changed)
    @on(Select.Changed)
    @on(Toggle.Changed)
    def _changed(self, message: Input.Changed | Select.Changed | Toggle.Changed) -> None:
        field = BY_ID.get(message.control.id or "")
        if field is not None:
            if self._wrong or self.values() != self._opened_with:  # else it is the change that restored the draft
                self.query_one("#mistake", Static).display = False
            self._wrong.pop(field.id, None)
            self._describe(field)

    def _describe(self, field: Field) -> None:
        """Beside a field: what is wrong with it, else what would be chosen and why, else its description."""
        text = Text(no_wrap=True, overflow="ellipsis")
        if field.id in self._wrong:
            text.append(printable(self._wrong[field.id]), f"bold {RED}")
        else:
            text.append_text(self._chosen(field) or Text(field.help))
        self.query_one(f"#row-{field.id} .description", Static).update(text)

    def _chosen(self, field: Field) -> Text:
        """What the preview would choose for a field that was left as it was; nothing before a preview."""
        value = self._previewed.get("values", {}).get(field.name)
        if value is None or self._is_changed(field):
            return Text()
        reason = self._previewed.get("reasons", {}).get(field.name)
        text = Text(printable(number(value) if isinstance(value, float) else str(value), 40), GREEN)
        return text.append(printable(f" chosen: {reason}" if reason else " automatically"), "dim")

    # ------------------------------------------------------------ preview, start, leave

    def action_preview(self) -> None:
        self._preview()

    @work(name="preview", group="preview", exclusive=True)
    async def _preview(self) -> None:
        hint = self.query_one("#hint", Static)
        try:
            read_form(self.values())
        except UsageError as error:
            self._show_mistakes(str(error))
            return
        hint.update("reading the data")
        result = await asyncio.to_thread(starter.preview, nested_values(self.values()))
        if self.closing or not self.is_mounted:
            return
        if "error" in result:
            self._show_mistakes(str(result["error"]))
            hint.update("")
            return
        self._previewed = result
        for field in FIELDS:
            self._describe(field)
        hint.update(Text(printable(str(result.get("about", ""))), GREEN))

    def action_start(self) -> None:
        try:
            config = read_form(self.values())
            run_dir = config.run.run_dir or _free_name(self.clip.new_runs_in)
            if is_run(run_dir):
                raise UsageError(f"--run-dir: {run_dir} already holds a run; choose another directory.")
        except UsageError as error:
            self._show_mistakes(str(error))
            return
        flags = starter.to_flags(config.model_copy(update={"run": config.run.model_copy(update={"run_dir": None})}))
        self._keep_draft(self._typed(), run_dir)
        self.clip.start_trainer(run_dir, flags)

    def _show_mistakes(self, sentence: str) -> None:
        """Each beside its field, the first of which gets the focus; and the whole sentence below."""
        before, self._wrong = self._wrong, mistakes(sentence)
        for name in {*before, *self._wrong}:
            self._describe(BY_ID[name])
        self._say(sentence)
        if self._wrong:
            self.query_one("#find-setting", Input).value = ""
            self._show_fields()
            first = self.query_one(f"#{next(iter(self._wrong))}")
            first.focus()
            first.scroll_visible()

    def _typed(self) -> dict[str, Any]:
        values = self.values()
        return {field.id: values[field.id] for field in FIELDS if self._is_changed(field)}

    def _keep_draft(self, typed: dict[str, Any], run: Path | None = None) -> None:
        """For the next form; `run` was started from it, and if that does not fail, there is no draft any more."""
        self.clip.settings.draft, self.clip.settings.draft_run = typed, run.absolute() if run else None
        self.clip.save_settings()

    def action_cancel(self) -> None:
        """The filter goes first; nothing that was typed into the form goes without a question."""
        find = self.query_one("#find-setting", Input)
        if find.value:
            find.value = ""
            self.set_focus(find)
            return
        restored = self._clone is None and bool(self.clip.settings.draft)
        if self.values() == self._opened_with and not restored:
            self.app.pop_screen()
            return
        answers = {"k": "keep what was typed and leave", "d": "discard it"}
        text = "It holds what was typed before." if restored else "The form was changed."
        self.app.push_screen(Confirm("Leave the form?", text, answers), self._leave)

    def _leave(self, answer: str | None) -> None:
        if answer == "k":
            self._keep_draft(self._typed())
        elif answer == "d":
            self._discard()
        if answer is not None:
            self.app.pop_screen()

    def _discard(self) -> None:
        """Forget what was typed; Ctrl-Z on the list of runs opens the form with it again."""
        typed, clip = self._typed(), self.clip
        if self._clone is None:
            self._keep_draft({})

        def back() -> None:
            clip.settings.draft, clip.settings.draft_run = typed, None
            clip.save_settings()
            clip.push_screen(NewRunScreen())

        clip.undo.did("runs", "the discarded form", back)

    def key_escape(self) -> None:
        """The binding of Escape does it; done here too, it would answer the question that it asks."""

    def _say(self, sentence: str) -> None:
        mistake = self.query_one("#mistake", Static)
        mistake.update(printable(sentence))
        mistake.display = True


def _sections(fields: list[Field]) -> Iterator[tuple[str, Iterator[Field]]]:
    return groupby(fields, key=lambda field: field.section)


def _row(field: Field) -> Widget:
    return Horizontal(
        Static(field.flag, markup=False, classes="flag"),
        _control(field),
        Static(field.help, markup=False, classes="description"),
        classes="field",
        id=f"row-{field.id}",
    )


def _control(field: Field) -> Widget:
    if field.kind == "switch":
        return Toggle(value=bool(field.default), id=field.id, animate=False)
    if field.kind == "choice":
        return Select(
            [(choice, choice) for choice in field.choices],
            prompt=field.placeholder,
            allow_blank=field.default is None,
            value=field.default if field.default is not None else Select.NULL,
            id=field.id,
            compact=True,
        )
    return Input(placeholder=field.placeholder, id=field.id, compact=True)


def _free_name(root: Path) -> Path:
    """A run directory named by date and time that is not there yet."""
    name = time.strftime("%Y%m%d-%H%M%S")
    return next(path for n in range(1, 1000) if not (path := root / (name if n == 1 else f"{name}-{n}")).exists())
