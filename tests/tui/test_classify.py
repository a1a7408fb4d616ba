"""The Classify screen."""

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

from clip_core.run.paths import RunPaths
from clip_tui.app import ClipApp
from clip_tui.gallery import gallery_of
from clip_tui.outcomes import Outcomes, labels_of, outcomes_of
from clip_tui.screens.classify import ClassifyScreen, split
from clip_tui.widgets.bars import Bars
from clip_tui.widgets.confusion import ConfusionMap
from tests.tui.conftest import COLOURS
from tests.tui.pilot import opened, says, screen_text, until
from tests.tui.samples import FixedEncoders


async def _classify(pilot: Pilot[None], run: Path) -> ClassifyScreen:
    app = await opened(pilot, run, "classify")
    app.encoders = FixedEncoders()
    screen = pilot.app.screen
    assert isinstance(screen, ClassifyScreen)
    await until(pilot, lambda: "a red square" in screen.query_one("#classes", Input).value)
    return screen


async def test_next_and_previous_go_through_the_validation_images(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _classify(pilot, runs / "live")
        image = screen.query_one("#image", Input)
        for key, name in (("n", "blue.png"), ("p", "red.png"), ("p", "orange.png")):
            await pilot.press(key)
            assert Path(image.value).name == name
            assert screen.query_sent is not None
            assert Path(screen.query_sent["image"]).name == name


async def test_the_probabilities_are_ranked_with_the_true_class_marked(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _classify(pilot, runs / "live")
        await pilot.press("n")
        ranked = screen.query_one("#probabilities", Bars)
        await until(pilot, lambda: bool(ranked.bars))
        assert [bar.value for bar in ranked.bars[:2]] == ["90.0%", "80.0%"]
        assert [bar.name for bar in ranked.bars if bar.right] == ["a blue square"]


@pytest.mark.parametrize(
    ("field", "typed", "words"),
    [
        ("classes", "one", "at least two classes"),
        ("image", "", "at least two classes"),
        ("templates", "a photo", "needs a {}"),
    ],
)
async def test_what_is_missing_is_said_instead_of_asked(runs: Path, field: str, typed: str, words: str) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        screen = await _classify(pilot, runs / "live")
        screen.query_one(f"#{field}", Input).value = typed
        screen.classify()
        await says(pilot, words)
        assert screen.query_sent is None


async def test_enter_classifies_without_a_field_that_has_the_focus_and_every_class_can_be_reached(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _classify(pilot, runs / "live")
        app.encoders = ManyClasses()
        screen.query_one("#classes", Input).value = ", ".join(f"class {n}" for n in range(24))
        await pilot.press("enter")
        await says(pilot, "class 0")
        assert "class 23" not in screen_text(app)
        await pilot.press("end")
        await says(pilot, "class 23")


class ManyClasses(FixedEncoders):
    async def ask(self, model, op, progress=lambda text: None, **values):  # type: ignore[no-untyped-def]
        answer = await super().ask(model, op, progress, **values)
        if op == "classification":
            answer.result.update(classes=values["classes"], probabilities=[0.01] * len(values["classes"]))
        return answer


async def test_a_whole_set_is_counted_by_class_and_its_confusions_open_their_images(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(160, 50)) as pilot:
        screen = await _classify(pilot, runs / "live")
        await pilot.press("s")
        await says(pilot, "accuracy 16.7% (1 of 6)")
        table = screen.query_one("#per-class", DataTable)
        shown = {str(table.get_row_at(row)[0]): [str(cell) for cell in table.get_row_at(row)] for row in range(6)}
        assert shown["red"] == ["red", "1", "100.0%", "50.0%", ""], "without the words that all classes share"
        assert shown["blue"] == ["blue", "1", "0.0%", "0.0%", "1 red"]
        assert str(table.get_row_at(5)[0]) == "red", "the lowest recall first"
        assert [outcome.wrong for outcome in screen._listed] == [True] * 5 + [False]
        screen.query_one(ConfusionMap).focus()
        await pilot.press("enter")  # the cursor is on the largest confusion
        true, predicted = screen.query_one(ConfusionMap).cursor
        assert [(each.true, each.predicted) for each in screen._listed] == [(true, predicted)]
        await until(pilot, lambda: screen.query_one("#wrong").has_focus)
        await pilot.press("escape")
        assert len(screen._listed) == 6, "all again"
        await pilot.press("o")
        await says(pilot, "by precision")


async def test_classes_are_cut_before_the_number_of_those_that_they_are_taken_for(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await _classify(pilot, runs / "live")
        screen.query_one("#classes", Input).value = ", ".join(f"a {colour} square" for colour in COLOURS) + ", a cat"
        screen.query_one("#templates", Input).value = "{} | a very long template of a photo of {}"
        await pilot.press("s")
        await says(pilot, "1 red square")
        table = screen.query_one("#per-class", DataTable)
        await until(pilot, lambda: 0 < table.virtual_size.width <= table.content_size.width)


async def test_a_run_without_images_does_not_show_those_of_another(runs: Path) -> None:
    RunPaths(runs / "older").validation.write_text('{"pairs": [{"ima')
    app = ClipApp(runs)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await _classify(pilot, runs / "live")
        assert screen.query_one("#image", Input).value
        app.open_run(runs / "older", "classify")
        await says(pilot, "validation.json is not a JSON file")
        assert not screen.query_one("#image", Input).value


async def test_an_edited_class_is_classified_again_without_a_key(runs: Path) -> None:
    app = ClipApp(runs)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await _classify(pilot, runs / "live")
        screen.query_one("#classes", Input).value = "a red square, a blue square"
        await pilot.pause(0.1)
        assert screen.query_sent is None, "nothing was asked yet, so an edit asks nothing"
        await pilot.press("enter")
        screen.query_one("#classes", Input).value = "a red square, a cat"
        await until(pilot, lambda: bool(screen.query_sent) and "a cat" in screen.query_sent["classes"])


def test_outcomes_are_counted_and_labels_follow_the_templates() -> None:
    gallery = gallery_of([("1.png", "a photo of a cat"), ("2.png", "dog"), ("3.png", "a tree"), ("4.png", "Cat")])
    labels = labels_of(gallery, ["cat", "dog"], ["a photo of a {}"])
    assert labels == {"1.png": 0, "2.png": 1, "4.png": 0}
    result = {
        "images": ["1.png", "2.png", "3.png", "4.png"], "predicted": [0, 0, 1, 1], "probabilities": [0.6, 0.7, 0.9, 0.8]
    }  # fmt: skip
    found = outcomes_of(result, ["cat", "dog"], labels)
    assert [outcome.image for outcome in found.every] == ["4.png", "2.png", "1.png", "3.png"]
    assert (found.labelled, found.right) == (3, 1)
    cat, dog = sorted(found.rows("recall"), key=lambda row: row.index)
    assert (cat.count, cat.recall, cat.precision) == (2, 0.5, 0.5)
    assert (dog.count, dog.recall, dog.precision) == (1, 0.0, 0.0)


def test_words_that_all_classes_share_are_left_out_where_there_is_little_room() -> None:
    names = {
        ("a photo of waste paper.", "a photo of glass waste."): ["waste paper.", "glass waste."],
        ("a red square", "a blue square", "a square"): ["red square", "blue square", "square"],
        ("red", "blue"): ["red", "blue"],
        ("a cat", "a cat"): ["cat", "cat"],
        ("one class",): ["one class"],
        (): [],
    }
    for classes, short in names.items():
        assert Outcomes(classes).names == short


def test_parts_are_distinct_and_not_empty() -> None:
    assert split(" cat, dog,,cat ,a  red circle", ",") == ["cat", "dog", "a  red circle"]
