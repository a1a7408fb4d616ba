"""Paths that are no data set, and paths that do not exist: one short sentence with a way out."""

from pathlib import Path

import pytest
from PIL import Image

from clip_core.data.formats.detect import read_data
from clip_core.data.formats.unsupported import not_found
from clip_core.errors import DataError


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pairs.xlsx", b"PK\x03\x04" + bytes(range(200)), "is an Excel file: save it as CSV."),
        ("images.7z", b"PK\x03\x04" + bytes(200), "is an archive: unpack it and name the folder."),
        ("noname", b"PK\x03\x04" + bytes(200), "is an archive: unpack it and name the folder."),
        ("data.pkl", b"\x80\x04" + bytes(20), "is a pickle, which is never opened"),
        ("data.arrow", b"ARROW1" + bytes(20), "is an Arrow file: save it as Parquet"),
        ("notes.md", b"some words\n", "is no list of images and captions that can be read"),
        ("noise.bin", bytes(range(256)), "is no text that can be read"),
        ("nothing.md", b"", "is empty"),
        ("cat.jpg", b"\xff\xd8\xff", "is one image: name its folder"),
    ],
)
def test_a_file_that_is_not_read_is_named_for_what_it_is(name: str, content: bytes, said: str, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_data(path)
    assert str(caught.value).startswith(f"{path} {said}")
    assert len(str(caught.value)) < len(str(path)) + 130


def test_a_folder_that_is_no_data_set_says_what_is_in_it(tmp_path: Path):
    def said() -> str:
        with pytest.raises(DataError) as caught:
            read_data(tmp_path)
        return str(caught.value)

    assert said() == f"{tmp_path} is an empty folder; name another."
    (tmp_path / "notes.md").write_text("words")
    assert said() == f"{tmp_path} has no images and no list of pairs, only 1 .md; name another folder."
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "1.jpg")
    assert "no captions" in said()
    (tmp_path / "pairs.xlsx").write_bytes(b"PK")
    assert said() == f"{tmp_path / 'pairs.xlsx'} is an Excel file: save it as CSV."
    (tmp_path / "pairs.csv").write_text("image,caption\n")
    assert said().endswith(f"name a list: {tmp_path / 'pairs.csv'}.")


@pytest.mark.parametrize(
    "spelt",
    ["Pairs.json", "pairs.jsn", "pairs", "pairs.csv", " pairs.json", "'pairs.json'", "file://{here}/pairs.json"],
)
def test_the_nearest_existing_path_is_named(spelt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pairs.json").write_text("[]")
    (tmp_path / "0001.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    path = Path(spelt.replace("{here}", str(tmp_path)))
    if path.exists():
        return  # the file system ignores case: nothing is missing
    near = tmp_path / "pairs.json" if spelt.startswith("file") else Path("pairs.json")
    assert not_found(path) == f"{path}: no such file, folder or shard; did you mean {near}?"


def test_backslashes_percent_signs_and_a_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").mkdir()
    (tmp_path / "my data" / "a.csv").write_text("")
    assert not_found(Path("my%20data/a.csv")).endswith("did you mean my data/a.csv?")
    assert not_found(Path("my data\\a.csv")).endswith("did you mean my data/a.csv?")
    assert not_found(tmp_path / "no" / "where" / "a.csv").endswith(f"there is no folder {tmp_path / 'no'}.")
    assert not_found(Path("zzz.csv")) == "zzz.csv: no such file, folder or shard."


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://example.org/a.tar", "https://example.org/a.tar is a web address: download it first"),
        ("https://example.org/{0..3}.tar", "(clip-train and clip-data check stream shards from there)."),
        ("a/{0..3}.tar::b.tar", "joins several patterns, which only clip-train and clip-data check stream"),
        ("https://huggingface.co/datasets/me/cats", "for example with hf download me/cats --repo-type dataset."),
        ("s3://bucket/a.tar", "s3://bucket/a.tar is a web address: download it first"),
    ],
)
def test_a_web_address_is_to_be_downloaded_first(address: str, said: str):
    with pytest.raises(DataError) as caught:
        read_data(Path(address))
    assert said in str(caught.value)
