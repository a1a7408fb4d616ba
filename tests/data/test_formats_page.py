"""docs/formats.md, held to what the code does."""

import re
from pathlib import Path

import pytest

from clip_core.data.formats.detect import FORMATS, read_data
from clip_core.data.pairs import Pair
from clip_core.data.splits import split_training

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def test_every_format_has_a_row_and_an_example():
    assert set(re.findall(r"^\| `([\w-]+)` \|", PAGE, flags=re.MULTILINE)) == set(FORMATS)
    assert set(re.findall(r"^## ([\w-]+)$", PAGE, flags=re.MULTILINE)) == set(FORMATS)


@pytest.mark.parametrize(
    ("name", "example"),
    [
        (name, example)
        for name in ("json", "jsonl", "csv", "flickr", "coco")
        for example in re.findall(r"^```\w*\n(.*?)^```", section(name), flags=re.DOTALL | re.MULTILINE)
    ],
)
def test_the_examples_of_lists_are_recognised_as_what_they_stand_for(name: str, example: str, tmp_path: Path):
    path = tmp_path / f"list{'.json' if name in ('json', 'coco') else ''}"
    path.write_text(example)
    for file in re.findall(r"[\w/]+\.jpg", example):
        for image in (tmp_path / file, tmp_path / "val2014" / file):
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
    reading = read_data(path)
    assert reading.format == name
    assert len(reading.pairs) >= 2
    assert [pair.problem for pair in reading.pairs if pair.problem] == []


def test_the_layouts_of_folders_are_read_as_drawn(tmp_path: Path):
    for name in ("sidecar", "class-folders"):
        for word in re.findall(r"[\w/]+\.[\w.]+", section(name).split("```")[1]):
            if "/" in word:
                file = tmp_path / name / word
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text('{"caption": "a caption"}' if file.suffix == ".json" else "a caption")
        reading = read_data(next((tmp_path / name).iterdir()))
        assert reading.format == name
        assert len(reading.pairs) == {"sidecar": 4}.get(name, 3)
        assert [pair.problem for pair in reading.pairs if pair.problem] == []


def test_the_line_about_splits_is_what_is_said():
    splits = ["train"] * 700 + ["val"] * 150 + ["test"] * 150
    pairs = [Pair(f"/{n}.jpg", "a cat", n, split=split) for n, split in enumerate(splits)]
    said = split_training(pairs, {"split": "split"}, val_file=False).said
    assert f"pairs.csv: {said}." in PAGE
