"""Pairs kept as columns are the pairs that were added, one by one or many at once."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_core.data.formats.collect import Collector
from clip_core.data.formats.detect import read_data
from clip_core.data.listed import Block, ListedPairs, Texts
from clip_core.data.pairs import Pair

IMAGES = ["a.jpg", "b.jpg", "in/c.jpg", "./a.jpg", "in/../b.jpg", "gone.jpg", "https://e.org/a.jpg", "", 7, ["a.jpg"]]
CAPTIONS = [
    "a longer caption",
    "  a red cat  ",
    "cat",
    "nan",
    "",
    None,
    "[brackets] and more",
    '["one", "two"]',
    "黑猫在沙发上",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    (root / "in").mkdir()
    for name in ("a.jpg", "b.jpg", "in/c.jpg"):
        (root / name).touch()
    return root


@given(
    rows=st.lists(st.tuples(st.sampled_from(IMAGES), st.sampled_from(CAPTIONS), st.sampled_from(["train", None]))),
    good=st.integers(0, 100),
)
def test_many_at_once_are_the_same_as_one_by_one(
    root: Path, rows: list[tuple[object, object, str | None]], good: int
) -> None:
    rows = [("a.jpg", "a longer caption", "train")] * good + rows + [("in/c.jpg", "cat", None)] * good
    slow, fast = Collector(root), Collector(root)
    for number, (image, caption, split) in enumerate(rows):
        slow.add(1 + number, image, caption, f"line {5 + number}", None, split)
    images, captions, splits = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    fast.add_many(1, images, captions, "line ", range(5, 5 + len(rows)), splits)
    assert list(fast.pairs) == list(slow.pairs)
    assert [fast.pairs[place] for place in range(len(fast.pairs))] == list(slow.pairs)
    assert list(fast.pairs.names()) == [pair.name for pair in slow.pairs]
    assert list(fast.pairs.splits()) == [pair.split for pair in slow.pairs]


def test_pairs_of_a_list_in_a_folder_are_those_of_the_whole(tmp_path: Path) -> None:
    pairs = ListedPairs(tmp_path / "in")
    pairs.extend(Block(["a.jpg", "b.jpg"], ["one", "two"], 1, "line ", range(2, 4), None))
    pairs.append(Pair(str(tmp_path / "in" / "c.jpg"), "", 3, "c.jpg", "the caption is empty", "line 4"))
    placed = pairs.placed(tmp_path, "in/", "in/a.csv, ", 10).with_splits(["train", "val", "test"])
    assert list(placed) == [
        Pair(str(tmp_path / "in" / "a.jpg"), "one", 11, "in/a.jpg", None, "in/a.csv, line 2", "train"),
        Pair(str(tmp_path / "in" / "b.jpg"), "two", 12, "in/b.jpg", None, "in/a.csv, line 3", "val"),
        Pair(str(tmp_path / "in" / "c.jpg"), "", 13, "in/c.jpg", "the caption is empty", "in/a.csv, line 4", "test"),
    ]
    assert placed[-1].problem == "the caption is empty"
    assert [pair.caption for pair in placed[:2]] == ["one", "two"]
    with pytest.raises(IndexError):
        placed[3]


def test_lines_are_counted_over_captions_with_line_ends_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.csv").write_bytes(
        b'image,caption\r\na.jpg,"one\r\ntwo\rthree"\r\n\r\na.jpg,\r\na.jpg,"a cat\n"\r\ngone.jpg,x\r\n'
    )
    pairs = read_data(tmp_path / "a.csv").pairs
    assert [(pair.entry, pair.place, pair.caption) for pair in pairs] == [
        (1, "line 2", "one\r\ntwo\rthree"), (2, "line 6", ""), (3, "line 7", "a cat"), (4, "line 9", "x"),
    ]  # fmt: skip


def test_a_long_list_with_a_bad_row_in_the_middle_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    lines = [f"a.jpg,a caption of words {number}" for number in range(12_000)]
    lines[7_000] = "gone.jpg,a caption of words"
    (tmp_path / "a.csv").write_text("image,caption\n" + "\n".join(lines))
    seen: list[tuple[int, int]] = []
    reading = read_data(tmp_path / "a.csv", progress=lambda done, total: seen.append((done, total)))
    assert [(pair.place, pair.entry) for pair in reading.pairs if pair.problem] == [("line 7002", 7001)]
    assert reading.pairs[11_999].caption == "a caption of words 11999"
    size = (tmp_path / "a.csv").stat().st_size
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@given(st.lists(st.text(st.characters())))
def test_texts_in_one_piece_are_the_texts(texts: list[str]) -> None:
    packed = Texts([*texts, "half a surrogate \ud83d", "not UTF-8 \udcff"])
    assert list(packed) == [packed[place] for place in range(len(packed))]
    assert list(packed)[:-2] == texts
    assert packed[len(texts) :] == ["half a surrogate \ud83d", "not UTF-8 \udcff"]
