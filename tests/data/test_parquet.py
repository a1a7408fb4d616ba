"""Parquet as Hugging Face publishes it: bytes or paths, splits by the files' names, classes by number."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clip_core.errors import DataError, MissingExtraError
from tests.data.sets import image, pairs_of, read, write


def png(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 6), (number * 30, 10, 10)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clip-tui" / "parquet"


def put(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)
    return path


def images(count: int) -> list[dict[str, Any]]:
    return [{"bytes": png(number), "path": f"{number}.png"} for number in range(count)]


def test_images_in_bytes_are_written_once_and_keyed_by_content(tmp_path: Path, cache: Path):
    path = put(tmp_path / "a.parquet", {"image": images(4), "text": [f"a thing {n}" for n in range(4)]})
    reading = read(path)
    assert reading.columns == {"image": "image", "caption": "text"}
    assert [caption for _, caption in pairs_of(reading)] == [f"a thing {n}" for n in range(4)]
    assert reading.pairs[2].image.read_bytes() == png(2)
    assert reading.notes == [f"the images are in the file; they are kept in {cache} (4 written now)."]
    moved = path.rename(tmp_path / "b.parquet")
    assert [pair.image for pair in read(moved).pairs] == [pair.image for pair in reading.pairs]
    assert "(0 written now)" in read(moved).notes[0]


def test_rows_without_an_image_or_a_caption_are_bad_pairs(tmp_path: Path):
    rows = {"image": [png(0), None, png(2), png(3)], "caption": [["one", "two"], ["x"], None, []]}
    reading = read(put(tmp_path / "a.parquet", rows))
    assert [pair.problem for pair in reading.pairs] == [
        None, None, "it has no image", "the caption is missing", "the caption is empty",
    ]  # fmt: skip
    assert [pair.place for pair in reading.pairs] == ["row 1", "row 1", "row 2", "row 3", "row 4"]


@pytest.mark.parametrize("as_struct", [True, False])
def test_images_by_path_are_looked_for_beside_the_file(tmp_path: Path, as_struct: bool):
    names = [image(tmp_path / "set" / "images" / f"{n}.png", n).name for n in range(3)]
    values = [{"bytes": None, "path": f"images/{name}"} if as_struct else f"images/{name}" for name in names]
    parts = ["train", "train", "test"]
    path = put(
        tmp_path / "set" / "metadata.parquet", {"image": values, "text": ["one", "two", "three"], "split": parts}
    )
    for place in (path, path.parent):
        reading = read(place)
        assert pairs_of(reading)[2] == ("images/2.png", "three")
        assert [pair.split for pair in reading.pairs] == parts


def test_the_files_of_a_folder_are_splits(tmp_path: Path):
    for name, count in (("train-00000-of-00002", 2), ("train-00001-of-00002", 2), ("validation-00000-of-00001", 1)):
        put(tmp_path / "set" / "data" / f"{name}.parquet", {"image": images(count), "text": [f"in {name}"] * count})
    reading = read(tmp_path / "set")
    assert [pair.split for pair in reading.pairs] == ["train"] * 4 + ["val"]
    assert [pair.entry for pair in reading.pairs] == [1, 2, 3, 4, 5]
    assert reading.pairs[4].place == "validation-00000-of-00001.parquet, row 1"
    assert len(pairs_of(reading)) == 5


def test_numbers_of_classes_have_their_names(tmp_path: Path):
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    path = put(tmp_path / "a.parquet", {"img": images(3), "label": [1, 0, 1]}, features)
    assert [pair.caption for pair in read(path, class_template="a {}").pairs] == ["a dog", "a cat", "a dog"]


@pytest.mark.parametrize("content", [b"PAR1" + bytes(range(200)) + b"PAR1", b"PAR1", b"words"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes):
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet \(.*; fetch it again\.$") as caught:
        read(write(tmp_path / "a.parquet", content))
    assert "\n" not in str(caught.value)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r'a\.parquet needs pyarrow.*pip install "clip-tui\[parquet\]"'):
        read(write(tmp_path / "a.parquet", b"PAR1"))


def test_an_image_that_is_none_is_a_bad_pair(tmp_path: Path):
    path = put(tmp_path / "a.parquet", {"image": [png(0), b"not an image"], "caption": ["one thing", "another thing"]})
    assert len(pairs_of(read(path))) == 1
