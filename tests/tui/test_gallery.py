"""The gallery of a run: its validation pairs, and finding one of its images."""

from pathlib import Path

import pytest

from clip_core.run.paths import RunPaths
from clip_tui.gallery import gallery_of, read_gallery, read_validation
from tests.tui.conftest import COLOURS, make_run


def test_captions_that_differ_only_in_case_and_spaces_are_one() -> None:
    gallery = gallery_of([("a", "A red circle"), ("b", "a  red circle")])
    assert gallery.captions == ("A red circle",)
    assert gallery.images_of == {"a red circle": ["a", "b"]}


def test_an_image_with_several_captions_is_one_image() -> None:
    gallery = gallery_of([("a", "one"), ("a", "two"), ("b", "one")])
    assert gallery.images == ("a", "b")
    assert gallery.captions_of["a"] == ["one", "two"]


def test_a_run_gives_its_validation_pairs(tmp_path: Path) -> None:
    gallery = read_gallery(make_run(tmp_path / "run"))
    assert [Path(image).stem for image in gallery.images] == list(COLOURS)


@pytest.mark.parametrize("content", [None, "", "[]", '{"pairs": [{"image": 4}]}', "not JSON"])
def test_a_missing_or_damaged_file_is_no_pairs(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        RunPaths(tmp_path).validation.write_text(content)
    assert read_validation(tmp_path) == []


def test_an_image_is_found_by_its_path_or_by_a_file_name_that_only_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second, third = (str(tmp_path / name) for name in ("a/x.png", "a/y.png", "b/y.png"))
    gallery = gallery_of([(first, "one"), (second, "two"), (third, "three")])
    assert gallery.find(first) == first
    assert gallery.find("a/x.png") == first
    assert gallery.find("x.png") == first
    assert gallery.find("y.png") == "y.png", "two images have this name"
    assert gallery.find("elsewhere.png") == "elsewhere.png"
