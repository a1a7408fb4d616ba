"""JSON as people have it: other keys, wrapped lists, names to captions, Karpathy's splits, conversations."""

import json
from pathlib import Path
from typing import Any

import pytest

from clip_core.errors import DataError
from tests.data.sets import image, pairs_of, problem, read, write

CAPTIONS = {f"images/{n}.png": f"a thing of number {n}" for n in range(4)}
PAIRS = list(CAPTIONS.items())
LIST = [{"image": name, "caption": caption} for name, caption in PAIRS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        image(tmp_path / "set" / "images" / f"{number}.png", number)
    return tmp_path / "set"


@pytest.mark.parametrize(
    "value",
    [
        [{"file_name": name, "text": caption, "id": 3} for name, caption in PAIRS],
        [{"filepath": name, "title": caption} for name, caption in PAIRS],
        [list(pair) for pair in PAIRS],
        CAPTIONS,
        {name: [caption] for name, caption in PAIRS},
        {name: {"caption": caption, "score": 1} for name, caption in PAIRS},
        {"data": LIST},
        {"annotations": LIST, "version": "1.0", "licences": []},
        {"result": {"items": LIST}},
        {"data": [list(pair) for pair in PAIRS]},
        {"image": list(CAPTIONS), "caption": list(CAPTIONS.values())},
        {"image": dict(enumerate(CAPTIONS)), "caption": dict(enumerate(CAPTIONS.values()))},
    ],
)
def test_the_shapes_of_a_list_are_the_same_pairs(folder: Path, value: Any):
    reading = read(write(folder / "pairs.json", json.dumps(value)))
    assert reading.format == "json"
    assert pairs_of(reading) == PAIRS


@pytest.mark.parametrize(
    "other", [{"image": "images/3.png"}, {"image": "images/3.png", "caption": None}, 7, None, ["x"]]
)
def test_an_entry_without_a_caption_is_one_bad_pair(folder: Path, other: Any):
    path = write(folder / "pairs.json", json.dumps([*LIST[:2], other, LIST[2]]))
    assert problem(path).startswith("entry 3: ")
    assert len(pairs_of(read(path))) == 3
    path = write(folder / "pairs.json", json.dumps({"data": [*LIST[:2], other, LIST[2]]}))
    assert problem(path).startswith("data, entry 3: ")


def test_a_caption_that_is_nan_is_missing(folder: Path):
    path = write(folder / "pairs.json", json.dumps([*LIST[:2], {"image": "images/2.png", "caption": float("nan")}]))
    assert problem(path) == "entry 3: the caption is missing"


def test_karpathys_splits_are_honoured(folder: Path):
    parts = ["train", "restval", "val", "test"]
    items = [
        {
            "filename": f"{n}.png",
            "filepath": "images",
            "split": part,
            "sentences": [{"raw": f"a {n}"}, {"raw": f"b {n}"}],
        }
        for n, part in enumerate(parts)
    ]
    reading = read(
        write(folder / "dataset_coco.json", json.dumps({"dataset": "coco", "images": [*items, {"filename": "x"}]}))
    )
    assert [pair.split for pair in reading.pairs[::2]][:4] == ["train", "train", "val", "test"]
    assert pairs_of(reading)[:2] == [("images/0.png", "a 0"), ("images/0.png", "b 0")]
    assert sum(pair.problem is not None for pair in reading.pairs) == 1
    flat = [{"filename": f"{n}.png", "split": "train", "sentences": [{"raw": f"a {n}"}]} for n in range(4)]
    assert len(pairs_of(read(write(folder / "dataset.json", json.dumps({"images": flat}))))) == 4


def test_lists_that_are_called_like_splits_are_splits(folder: Path):
    value = {"train": LIST[:2], "val": LIST[2:3], "test": LIST[3:]}
    reading = read(write(folder / "pairs.json", json.dumps(value)))
    assert [pair.split for pair in reading.pairs] == ["train", "train", "val", "test"]
    assert reading.pairs[2].place == "val, entry 1"
    with pytest.raises(DataError, match="holds several lists, 'one', 'two'"):
        read(write(folder / "pairs.json", json.dumps({"one": LIST, "two": LIST})))


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_the_first_answer_of_a_conversation_is_the_caption(folder: Path, suffix: str):
    def talk(n: int) -> list[dict[str, str]]:
        asked = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": f"<image>A thing {n}."}]
        return [*asked, {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]

    entries = [{"id": n, "image": f"images/{n}.png", "conversations": talk(n)} for n in range(4)]
    entries.append({"id": 5, "image": "images/0.png", "conversations": []})
    content = json.dumps(entries) if suffix == "json" else "\n".join(map(json.dumps, entries))
    reading = read(write(folder / f"llava.{suffix}", content))
    assert pairs_of(reading) == [(f"images/{n}.png", f"A thing {n}.") for n in range(4)]
    assert reading.pairs[4].problem == "the caption is missing"
    assert reading.notes == ["of each conversation the first answer is the caption; 4 other answers are not used."]


def test_coco_annotations_without_a_caption_are_bad_pairs(folder: Path):
    value = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(4)],
        "annotations": [{"image_id": n, "caption": f"a {n}"} if n != 2 else {"image_id": n} for n in range(4)],
    }
    path = write(folder / "captions.json", json.dumps(value))
    assert problem(path) == "annotation 3: the caption is missing"
