"""A new run: every setting of the configuration as a form, which keeps what was typed."""

import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.events import DescendantFocus
from textual.widget import Widget
from textual.widgets import Input, Select, Static

from clip_core.config import TITLES
from clip_core.errors import UsageError
from clip_core.run.paths import is_run
from clip_core.run.records import State
from clip_core.text import printable
from clip_tui.actions import bindings
from clip_tui.form import Field, form_fields, read_form
from clip_tui.screens.page import Page
from clip_tui.starter import to_flags
from clip_tui.watcher import overview
from clip_tui.widgets.toggle import Toggle


class NewRunScreen(Page):
    """Ctrl-S checks the form and starts the trainer; a mistake is shown below, with its flag."""

    PAGE = "new"
    BINDINGS = bindings("new")

    def body(self) -> ComposeResult:
        with VerticalScroll(id="form", can_focus=False) as form:
            form.border_title = "New run"
            form.border_subtitle = "tab moves on · ctrl-s starts"
            for section, fields in groupby(form_fields(), key=lambda field: field.section):
                yield Static(TITLES[section], markup=False, classes="section")
                yield from _rows(fields)
        yield Static("", markup=False, id="hint")
        yield Static("", markup=False, id="mistake")

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#data-data_file").focus()
        self.call_after_refresh(self._restore)

    def _restore(self) -> None:
        """What was typed the last time, and why the run that it started failed, if it did."""
        draft, run = self.clip.draft, self.clip.draft_run
        with self.prevent(Input.Changed, Select.Changed, Toggle.Changed):
            for field in form_fields():
                if draft.get(field.id) is not None:
                    self._set(field, draft[field.id])
        if run is not None:
            before = overview(run, self.clip.started().get(run))
            if before.state is State.FAILED and before.error:
                self._say(f"{run.name} failed: {before.error}")

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """The whole description of the field that has the focus; beside the field there may be too little room."""
        field = next((field for field in form_fields() if field.id == event.widget.id), None)
        if field is not None:
            self.query_one("#hint", Static).update(f"{field.flag}: {field.help}")

    def values(self) -> dict[str, Any]:
        """What is in the form, by `Field.id`."""
        return {field.id: self._value(field) for field in form_fields()}

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
        if isinstance(widget, Select | Toggle | Input):
            widget.value = value

    def action_start(self) -> None:
        try:
            config = read_form(self.values())
            run_dir = config.run.run_dir or _free_name(self.clip.new_runs_in)
            if is_run(run_dir):
                raise UsageError(f"--run-dir: {run_dir} already holds a run; choose another directory.")
        except UsageError as error:
            self._say(str(error))
            return
        flags = to_flags(config.model_copy(update={"run": config.run.model_copy(update={"run_dir": None})}))
        self.clip.draft_run = run_dir
        self.clip.start_trainer(run_dir, flags)

    def action_cancel(self) -> None:
        self.app.pop_screen()

    def key_escape(self) -> None:
        self.action_cancel()

    def _say(self, sentence: str) -> None:
        mistake = self.query_one("#mistake", Static)
        mistake.update(printable(sentence))
        mistake.display = True

    @on(Input.Changed)
    @on(Select.Changed)
    @on(Toggle.Changed)
    def _changed(self, message: Input.Changed | Select.Changed | Toggle.Changed) -> None:
        self.query_one("#mistake", Static).display = False
        field = next((field for field in form_fields() if field.id == message.control.id), None)
        if field is not None:
            self.clip.draft[field.id] = self._value(field)


def _rows(fields: Iterator[Field]) -> Iterator[Widget]:
    for field in fields:
        yield Horizontal(
            Static(field.flag, markup=False, classes="flag"),
            _control(field),
            Static(field.help, markup=False, classes="description"),
            classes="field",
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
