"""The Retrieve screen."""

import asyncio
import csv
import json
from pathlib import Path

import pytest
from rich.text import Text
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

from clip_tui.app import ClipApp
from clip_tui.encoder import Model
from clip_tui.found import COMPARED, column_widths
from clip_tui.gallery import Place
from clip_tui.screens.detail import DetailScreen
from clip_tui.screens.retrieve import RetrieveScreen
from clip_tui.widgets.bars import Bars
from clip_tui.widgets.results import Results
from tests.tui.conftest import COLOURS, SIZES
from tests.tui.pilot import opened, says, screen_text, until
from tests.tui.samples import FixedEncoders


async def _retrieve(pilot: Pilot[None], run: Path) -> RetrieveScreen:
    app = await opened(pilot, run, "retrieve")
    app.encoders = FixedEncoders()
    screen = pilot.app.screen
    assert isinstance(screen, RetrieveScreen)
    await until(pilot, lambda: bool(screen.gallery.images))
    return screen


async def _ask(pilot: Pilot[None], screen: RetrieveScreen, typed: str) -> None:
    screen.query_one("#query", Input).value = typed
    await pilot.press("slash", "enter")
    await until(pilot, lambda: bool(screen.found))


async def test_the_field_says_what_is_searched_in_each_direction(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        await _retrieve(pilot, runs / "live")
        await says(pilot, "text or image to match against 6 images")
        await pilot.press("t")
        await says(pilot, "image or text to match against 6 captions")


async def test_a_true_match_is_marked_and_its_rank_is_said(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await pilot.press("slash", *"A blue square", "enter")
        await says(pilot, "1. 0.900  red.png")
        await says(pilot, "2. 0.800 ✓  blue.png")
        await says(pilot, "right answer at rank 2 of 6 (0.800)")
        assert screen.query_sent is not None
        assert screen.query_sent["images"] == list(screen.gallery.images)
        assert screen.query_sent["expected"] == [screen.gallery.images[1]]


async def test_terms_with_signs_and_images_are_sent_with_their_weights(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await _ask(pilot, screen, "blue.png + a square - 0.5*red")
        assert screen.query_sent is not None
        assert screen.query_sent["terms"] == [
            {"image": screen.gallery.images[1], "weight": 1.0},
            {"text": "a square", "weight": 1.0},
            {"text": "red", "weight": -0.5},
        ]
        assert screen.query_sent["expected"] == []


async def test_an_image_is_given_by_its_file_name_and_its_captions_are_ranked(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await pilot.press("t", "slash", *"blue.png", "enter")
        assert screen.query_sent is not None
        assert screen.query_sent["terms"][0]["image"] == screen.gallery.images[1]
        found = screen.query_one("#found-texts", Bars)
        await until(pilot, lambda: bool(found.bars))
        assert [bar.name for bar in found.bars if bar.right] == ["a blue square"]


async def test_a_random_query_is_a_caption_or_an_image_of_the_gallery(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await pilot.press("x")
        assert screen.query_one("#query", Input).value in screen.gallery.captions
        await pilot.press("t", "x")
        assert screen.query_sent is not None
        assert screen.query_sent["terms"][0]["image"] in screen.gallery.images


async def test_changing_the_direction_drops_the_query(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await pilot.press("x", "t")
        assert screen.query_sent is None
        await says(pilot, "your own query")
        assert "Traceback" not in screen_text(app)


class ManyResults(FixedEncoders):
    """A gallery of 30 images, of which no more than were asked for are sent."""

    async def ask(self, model, op, progress=lambda text: None, **values):  # type: ignore[no-untyped-def]
        answer = await super().ask(model, op, progress, **values)
        items = [f"/images/{number}.png" for number in range(30)]
        answer.result.update(items=items[: values["top_k"]], similarities=[0.5] * 30, total=30)
        return answer


async def _many_results(pilot: Pilot[None], app: ClipApp, run: Path) -> RetrieveScreen:
    """The first eight of 30 results, where `FETCHED` is 8."""
    screen = await _retrieve(pilot, run)
    app.encoders = ManyResults()
    screen._fetched = 8
    await _ask(pilot, screen, "anything")
    await says(pilot, "1–6 of 30")
    return screen


async def test_all_results_can_be_reached_page_by_page(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_tui.screens.retrieve.FETCHED", 8)
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _many_results(pilot, app, runs / "live")
        await pilot.press("pagedown")
        await says(pilot, "7–8 of 30")
        await pilot.press("pagedown")  # the end of what was fetched: more is asked for
        await until(pilot, lambda: len(screen.found) == 30)
        await pilot.press("pagedown", "pagedown", "pagedown")
        await says(pilot, "25–30 of 30")
        await pilot.press("left")
        assert screen.selected == 23


async def test_the_selected_result_opens_large_and_is_the_next_query(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await _ask(pilot, screen, "a blue square")
        screen.query_one(Results).focus()
        await pilot.press("right", "enter")
        await until(pilot, lambda: isinstance(app.screen, DetailScreen))
        await says(pilot, "✓ right answer")
        await says(pilot, "blue.png")
        await pilot.press("escape", "i")
        await until(pilot, lambda: bool(screen.query_sent and "image" in screen.query_sent["terms"][0]))
        assert screen.query_sent is not None
        assert screen.query_sent["terms"][0]["image"] == screen.gallery.images[1]


async def test_two_models_stand_side_by_side_with_rank_changes_and_drift(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await _ask(pilot, screen, "a blue square")
        await pilot.press("c")
        await says(pilot, "step_0000040")
        await pilot.press(*"0040", "enter")
        await until(pilot, lambda: len(screen.answers) == 2)
        await says(pilot, "different order, max |Δ|")
        await says(pilot, "right answer at rank 2 of 6 (0.800) → 5 (0.500)")
        table = screen.query_one("#table", DataTable)
        row = [str(cell) for cell in table.get_row_at(1)]
        assert row[:7] == ["2", "0.800", "✓", "blue.png", "5", " ▼3", "-3.0e-01"]
        await pilot.press("b")
        await says(pilot, "● onnx")
        await says(pilot, "different order, max |Δ|")  # with the second model, not with the other backend


@pytest.mark.parametrize("size", SIZES)
async def test_the_table_of_two_models_fits_the_screen(runs: Path, size: tuple[int, int]) -> None:
    app = ClipApp(runs)
    app.encoders, app.backend = FixedEncoders(), "torch"
    async with app.run_test(size=size) as pilot:
        await opened(pilot, runs / "live", "retrieve")
        screen = app.screen
        assert isinstance(screen, RetrieveScreen)
        await until(pilot, lambda: bool(screen.gallery.images))
        app.second = Model(runs / "live" / "checkpoints" / "step_0000030", "torch", "step_0000030")
        screen.query_one("#query", Input).value = "a red square"
        await pilot.press("slash", "enter")
        await says(pilot, "drift")
        table = screen.query_one("#table", DataTable)
        await until(pilot, lambda: 0 < table.virtual_size.width <= table.size.width)


class SlowFirst(FixedEncoders):
    """The first model answers only when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.asked = asyncio.Event(), 0

    async def ask(self, model, op, progress=lambda text: None, **values):  # type: ignore[no-untyped-def]
        if model.name == "torch":
            self.asked += 1
            await self.go.wait()
        return await super().ask(model, op, progress, **values)


async def test_nothing_stands_in_for_a_model_that_has_not_answered(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50), notifications=True) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        encoders = app.encoders = SlowFirst()
        app.backend = "torch"
        app.second = Model(runs / "live" / "checkpoints" / "step_0000030", "torch", "step_0000030")
        screen.query_one("#query", Input).value = "a red square"
        await pilot.press("slash", "enter")
        await until(pilot, lambda: len(screen.answers) == 1)
        assert screen.found == []
        await pilot.press("enter")  # on the table: it does not open an older answer
        screen.action_detail()
        await says(pilot, "has not answered yet")
        await pilot.press("slash", "enter")  # the same query again: it goes on
        encoders.go.set()
        await says(pilot, "drift")
        assert encoders.asked == 1
        assert screen.found[0].item.endswith("red.png")
        assert screen.found[0].other is not None


def test_captions_and_then_names_are_cut_where_a_table_has_no_room() -> None:
    row = [Text("x" * size) for size in (4, 40, 60)]
    assert column_widths(["rank", "result", "captions"], [row], 120) == [4, 40, 60]
    assert column_widths(["rank", "result", "captions"], [row], 80) == [4, 40, 29]
    assert column_widths(["rank", "result", "captions"], [row], 60) == [4, 37, 12]
    compared = [Text("x" * size) for size in (3, 5, 1, 40, 3, 3, 8, 60)]
    assert sum(size + 2 for size in column_widths(COMPARED, [compared], 72)) < 72, "beside the panel, at 120 columns"


@pytest.mark.parametrize("name", ["found.csv", "found.json"])
async def test_results_are_written_as_csv_or_json(
    runs: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = ClipApp(runs)
    said: list[str] = []
    monkeypatch.setattr(app, "say", lambda text, severity="information": said.append(text))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await _ask(pilot, screen, "a blue square")
        for file in (name, name, "found.txt"):
            screen._write(str(tmp_path / file))
    assert "6 results written" in said[0]
    assert "exists; choose another name" in said[1]
    assert ".json or .csv" in said[2]
    text = (tmp_path / name).read_text()
    rows = json.loads(text)["results"] if name.endswith("json") else list(csv.DictReader(text.splitlines()))
    assert [Path(row["item"]).stem for row in rows] == list(COLOURS)
    assert [str(row["right"]) for row in rows][:3] == ["False", "True", "False"]


async def test_results_that_were_not_paged_through_are_written_too(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_tui.screens.retrieve.FETCHED", 8)
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _many_results(pilot, app, runs / "live")
        screen._write(str(tmp_path / "found.txt"))
        assert len(screen.found) == 8, "a wrong name is refused before more is asked for"
        screen._write(str(tmp_path / "found.csv"))
        await until(pilot, (tmp_path / "found.csv").is_file)
    assert len((tmp_path / "found.csv").read_text().splitlines()) == 31


async def test_a_folder_is_a_gallery_and_a_wrong_one_says_why(runs: Path, tmp_path: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await _ask(pilot, screen, "a red square")
        screen._use(Place("folder", runs / "images"))
        await until(pilot, lambda: len(screen.gallery.images) == len(COLOURS) and bool(screen.found))  # asked again
        await says(pilot, "folder")
        screen._use(Place("folder", tmp_path / "nowhere"))
        await until(pilot, lambda: "correct the path" in screen_text(app))
        await pilot.press("g")
        await says(pilot, "training set")


async def test_y_copies_the_selected_result(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    app = ClipApp(runs)
    monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _retrieve(pilot, runs / "live")
        await pilot.press("y")
        assert copied == []
        await _ask(pilot, screen, "a blue square")
        await pilot.press("y")
        assert copied == [str(runs / "images" / "red.png")]


def test_models_are_told_apart_by_all_that_is_loaded(tmp_path: Path) -> None:
    assert len({Model(tmp_path, "onnx", "onnx"), Model(tmp_path, "onnx", "int8", "int8")}) == 2
