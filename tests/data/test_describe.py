"""What a person is told of a data set before it is used."""

import json
from pathlib import Path

import pytest
from PIL import Image

from clip_core.cli.data import main
from clip_core.data.describe import reading_facts, reading_text, two_lines
from clip_core.data.formats.detect import Reading
from clip_core.data.pairs import Pair


@pytest.fixture
def reading() -> Reading:
    root = Path("/data")
    splits = ["train", "train", "val"]
    pairs = [
        Pair(str(root / f"{n}.png"), f"a \x1b[2Jcat {n}", n, f"{n}.png", split=split) for n, split in enumerate(splits)
    ]
    return Reading(
        path=root / "pairs.csv",
        format="csv",
        why="its name ends in .csv",
        root=root,
        columns={"image": "file", "caption": "text", "split": "part"},
        pairs=pairs,
        notes=["backslashes in paths are read as /"],
        not_read={".heic": 4, "files of captions without an image": 1200},
    )


def test_the_facts_are_aligned_and_safe_to_print(reading: Reading):
    assert reading_text(reading_facts(reading)) == [
        "format      csv: its name ends in .csv",
        "images in   file",
        "captions in text",
        "splits      2 train, 1 val, by part",
        "paths from  /data",
        "note        backslashes in paths are read as /",
        "not read    4 .heic, 1,200 files of captions without an image",
        "examples    0.png  a [2Jcat 0",
        "            1.png  a [2Jcat 1",
        "            2.png  a [2Jcat 2",
    ]


def test_training_says_the_same_in_two_lines(reading: Reading):
    first, second = two_lines(reading)
    assert first == "/data/pairs.csv read as csv: its name ends in .csv; images in file, captions in text."
    assert second == (
        'first pair 0.png "a [2Jcat 0"; backslashes in paths are read as /; '
        "not read: 4 .heic, 1,200 files of captions without an image."
    )


@pytest.mark.parametrize("command", ["check", "info"])
def test_json_has_the_same_facts(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = ["image,caption,split"]
    for number, split in enumerate(["train", "train", "val"]):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,a cat {number},{split}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    assert main([command, str(tmp_path / "pairs.csv"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["why"]) == ("csv", "its name ends in .csv")
    assert found["columns"] == {"image": "image", "caption": "caption", "split": "split"}
    assert found["splits"] == {"train": 2, "val": 1}
    assert (found["notes"], found["not_read"]) == ([], {})
    assert found["examples"][0] == {"image": str(tmp_path / "0.png"), "caption": "a cat 0"}
