"""Every screen at 80x24 and 160x50, compared with the text files in snapshots/.

A snapshot holds the characters of the screen, one line a row, so that a change of the interface is read in a diff like
any other text. Colours are left out: the tests of each screen check those that carry a meaning.

To write them anew after a change:  SNAPSHOTS=write python -m pytest tests/tui/test_snapshots.py
"""

import difflib
import itertools
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

from clip_core.run.paths import RunPaths
from clip_core.run.records import State, Status
from clip_tui.app import ClipApp
from clip_tui.encoder import Model
from clip_tui.screens.classify import ClassifyScreen
from clip_tui.screens.retrieve import RetrieveScreen
from tests.tui.conftest import BEST_STEP, SIZES, make_run
from tests.tui.pilot import says, screen_text, until
from tests.tui.samples import FixedEncoders, write_bundle, write_findings

SNAPSHOTS = Path(__file__).parent / "snapshots"
WRITE = os.environ.get("SNAPSHOTS") == "write"
SECONDS = 15.0  # until a screen that differs from its snapshot fails

SCROLLBAR_END = re.compile("[▁▂▃▄▅▆▇](?= │)")  # of a thumb: an eighth of a cell depends on the order of layouts

HOW = "If the change is meant: SNAPSHOTS=write python -m pytest tests/tui/test_snapshots.py"

NOW = 1_750_000_000.0
HOST, PID = "workstation", 4242


# ---------------------------------------------------------------- the run directories


def _write_status(path: Path, status: Status, age: float) -> None:
    """The same process on every machine, seen `age` seconds ago."""
    changes = {"pid": PID, "host": HOST, "heartbeat": NOW - age, "started": NOW - age - 60}
    status.model_copy(update=changes).write(path)
    os.utime(path, (NOW - age, NOW - age))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with runs/, the same on every machine: times, processes and paths (relative to it) are fixed."""
    place = tmp_path_factory.mktemp("snapshots")
    ticks = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(time, "time", lambda: NOW - 3600 + 0.25 * next(ticks))
        states = {"live": State.RUNNING, "stale": State.FINISHED, "exporting": State.FINISHED, "broken": State.FINISHED}
        for age, (name, state) in enumerate(states.items()):
            run = make_run(Path("runs") / name, state=state)
            status = RunPaths(run).status
            _write_status(status, Status.read(status), 0.0 if state.alive else 600.0 * age)
        empty = Path("runs/new")
        RunPaths(empty).checkpoints.mkdir(parents=True)
        _write_status(RunPaths(empty).status, Status(steps=100, epochs=5), 1.0)
        write_bundle(Path("runs/stale"), step=20)
        write_bundle(Path("runs/broken"), step=BEST_STEP)
        _write_status(RunPaths(Path("runs/exporting")).export_status, Status(state=State.RUNNING), 5.0)
        RunPaths(Path("runs/exporting")).export_log.write_text("converting checkpoints/step_0000030 ...\n")
        error = (
            "onnx/vision_model.onnx of step_0000030 differs from the PyTorch model: max |diff| 3.2e-02, "
            "top-1 agreement 61.0%; nothing was written to runs/broken/bundle."
        )
        _write_status(RunPaths(Path("runs/broken")).export_status, Status(state=State.FAILED, error=error), 60.0)
        images = [(f"{Path('runs/images').absolute()}/{name}.png", f"a {name} square") for name in ("red", "blue")]
        write_findings(Path("runs/live"), ["near_duplicates", "dark"], [(0, 1, "2 images", images), (1, 0, "", images)])
    return place


# ---------------------------------------------------------------- the screens


async def _findings(pilot: Pilot[None]) -> None:
    await pilot.press("v")


async def _help(pilot: Pilot[None]) -> None:
    await pilot.press("question_mark")


async def _new_run(pilot: Pilot[None]) -> None:
    await pilot.press("n")


async def _query_text(pilot: Pilot[None]) -> None:
    screen = pilot.app.screen
    assert isinstance(screen, RetrieveScreen)
    await until(pilot, lambda: bool(screen.gallery.images))
    screen.query_one("#query", Input).value = "a red square"
    await pilot.press("slash", "enter")


async def _query_image(pilot: Pilot[None]) -> None:
    screen = pilot.app.screen
    assert isinstance(screen, RetrieveScreen)
    await until(pilot, lambda: bool(screen.gallery.images))
    await pilot.press("t")
    screen.query_one("#query", Input).value = "red.png"
    await pilot.press("slash", "enter")


async def _classify(pilot: Pilot[None]) -> None:
    screen = pilot.app.screen
    assert isinstance(screen, ClassifyScreen)
    await until(pilot, lambda: "a red square" in screen.query_one("#classes", Input).value)
    screen.classify()


async def _query_table(pilot: Pilot[None]) -> None:
    await _query_text(pilot)
    app = pilot.app
    assert isinstance(app, ClipApp)
    app.second = Model(Path("runs/live/checkpoints/step_0000030"), "torch", "step_0000030")
    screen = app.screen
    assert isinstance(screen, RetrieveScreen)
    await until(pilot, lambda: len(screen.answers) == 2)


async def _classify_set(pilot: Pilot[None]) -> None:
    screen = pilot.app.screen
    assert isinstance(screen, ClassifyScreen)
    await until(pilot, lambda: "a red square" in screen.query_one("#classes", Input).value)
    await pilot.press("s")


async def _compare_runs(pilot: Pilot[None]) -> None:
    assert isinstance(pilot.app, ClipApp)
    pilot.app.compare([Path("runs/live"), Path("runs/stale")])


async def _delete(pilot: Pilot[None]) -> None:
    await says(pilot, "stale")
    table = pilot.app.screen.query_one(DataTable)
    table.move_cursor(row=[str(key.value).endswith("stale") for key in table.rows].index(True))
    await pilot.press("d")


async def _note(pilot: Pilot[None]) -> None:
    await says(pilot, "broken")  # the runs are listed
    await pilot.press("a")


async def _jump(pilot: Pilot[None]) -> None:
    await pilot.press("ctrl+o")


async def _detail(pilot: Pilot[None]) -> None:
    await says(pilot, "red.png")
    await pilot.press("enter")


async def _chooser(pilot: Pilot[None]) -> None:
    await pilot.press("c")


@dataclass(frozen=True)
class Case:
    """A screen: the run that is open (None: the list of runs), the page, what is done there, and words to wait for."""

    name: str
    run: str | None
    page: str
    words: str
    act: Callable[[Pilot[None]], Awaitable[None]] | None = None
    root: str = "runs"
    sizes: Sequence[tuple[int, int]] = tuple(SIZES)


CASES = (
    Case("runs", None, "runs", "live"),
    Case("runs-empty", None, "runs", "No runs yet", root="nowhere"),
    Case("new-run", None, "runs", "--data-file", _new_run),
    Case("live", "live", "live", "red.png", sizes=(*SIZES, (120, 40))),
    Case("live-empty", "new", "live", "starting"),
    Case("data", "live", "data", "red.png"),
    Case("data-findings", "live", "data", "> a red square", _findings),
    Case("data-empty", "new", "data", "validation 0"),
    Case("retrieve-empty", "live", "retrieve", "6 images"),
    Case("retrieve-images", "live", "retrieve", "12 ms", _query_text),
    Case("retrieve-table", "live", "retrieve", "▼5", _query_table),
    Case("retrieve-models", "stale", "retrieve", "ONNX Runtime", _chooser),
    Case("classify-set", "stale", "classify", "accuracy", _classify_set),
    Case("compare", None, "runs", "training pairs", _compare_runs),
    Case("retrieve-texts-stale", "stale", "retrieve", "12 ms", _query_image),
    Case("classify-empty", "new", "classify", "separated by commas"),
    Case("classify", "stale", "classify", "12 ms", _classify),
    Case("logs", "live", "logs", "step 59"),
    Case("export-empty", "live", "export", "No bundle yet"),
    Case("export-running", "exporting", "export", "running for"),
    Case("export-failed", "broken", "export", "failed"),
    Case("export-stale", "stale", "export", "parity passed"),
    Case("delete", None, "runs", "Delete", _delete),
    Case("note", None, "runs", "what this run is about", _note),
    Case("jump", "live", "classify", "a letter jumps there", _jump),
    Case("detail", "live", "data", "a red square", _detail),
    Case("help", "live", "live", "esc closes", _help),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_the_screen_is_the_one_in_its_snapshots(
    case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(time, "time", lambda: NOW)
    app = ClipApp(Path(case.root))
    app.encoders = FixedEncoders()
    app.backend = "torch"
    differences = []
    async with app.run_test(size=SIZES[0]) as pilot:
        if case.run is not None:
            app.open_run(Path(case.root) / case.run, case.page)
            await until(pilot, lambda: getattr(app.screen, "PAGE", "") == case.page)
        await says(pilot, "7 Export")
        if case.act is not None:
            await case.act(pilot)
        for width, height in case.sizes:
            await pilot.resize_terminal(width, height)
            await says(pilot, case.words)
            differences += await _compare(pilot, SNAPSHOTS / f"{case.name}-{width}x{height}.txt")
            await _rests(pilot, monkeypatch)
    if differences:
        pytest.fail("\n".join(["", *differences, HOW]), pytrace=False)


async def _compare(pilot: Pilot[None], file: Path) -> list[str]:
    """The lines in which the screen differs from its snapshot, or nothing after writing it."""
    if WRITE:
        file.parent.mkdir(exist_ok=True)
        file.write_text(await _settled(pilot, None), encoding="utf-8")
        return []
    expected = SCROLLBAR_END.sub(" ", file.read_text(encoding="utf-8")) if file.exists() else ""
    text = await _settled(pilot, expected)
    names = (file.name, "the screen now")
    return list(difflib.unified_diff(expected.splitlines(), text.splitlines(), *names, n=1, lineterm=""))


async def _rests(pilot: Pilot[None], monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing new a screen is not laid out; a scrollbar that comes and goes would do it 60 times a second."""
    layouts = 0
    screen = pilot.app.screen
    lay_out = screen._refresh_layout

    def counted(*args: Any, **flags: Any) -> None:
        nonlocal layouts
        layouts += 1
        lay_out(*args, **flags)

    monkeypatch.setattr(screen, "_refresh_layout", counted)
    for _ in range(30):
        layouts = 0
        await pilot.pause(0.1)
        if not layouts:
            return
    pytest.fail(f"at rest the screen is laid out {layouts} times in 0.1 s", pytrace=False)


async def _settled(pilot: Pilot[None], expected: str | None) -> str:
    """The screen as text: once it is as expected, or does not change any more."""
    app = pilot.app
    assert isinstance(app, ClipApp)
    began, rest, before = time.monotonic(), 0, ""
    while True:
        lines = (SCROLLBAR_END.sub(" ", line).rstrip() for line in screen_text(app).splitlines())
        text = "\n".join(lines) + "\n"
        rest = rest + 1 if text == before else 0
        before = text
        if text == expected or (expected is None and rest >= 50) or time.monotonic() - began > SECONDS:
            return text
        await pilot.pause(0.02)


def test_every_snapshot_has_its_screen() -> None:
    names = {f"{case.name}-{width}x{height}.txt" for case in CASES for width, height in case.sizes}
    assert {file.name for file in SNAPSHOTS.iterdir()} == names
