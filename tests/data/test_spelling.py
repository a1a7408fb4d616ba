"""Image paths that are spelt otherwise than the files: repaired by one rule, or the nearest is named."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_core.data.formats.detect import Reading
from clip_core.errors import DataError
from tests.data.sets import image, read, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        image(tmp_path / "set" / "images" / f"é {number}.jpg", number)
    return tmp_path / "set"


def listed(folder: Path, spell: Callable[[str], str], name: str = "all.tsv") -> Reading:
    rows = [f"{spell(f'images/é {n}.jpg')}\ta thing of number {n}" for n in range(6)]
    return read(write(folder / name, "\n".join(["image\tcaption", *rows])))


@pytest.mark.parametrize(
    ("spell", "words"),
    [
        (lambda name: name.replace("/", "\\"), "backslashes read as /"),
        (lambda name: ".\\" + name.replace("/", "\\"), "backslashes read as /"),
        (lambda name: name.replace(" ", "%20"), "%20 and the like decoded"),
        (lambda name: name.upper(), "case and Unicode form ignored"),
        (lambda name: unicodedata.normalize("NFD", name), "case and Unicode form ignored"),
        (lambda name: name.removesuffix(".jpg"), "suffix added"),
        (lambda name: name.removeprefix("images/").removesuffix(".jpg"), "suffix added, images/ added"),
        (lambda name: f"data/mine/{name}", "data/mine/ removed"),
        (lambda name: f"/home/someone/{name}", "/home/someone/ removed"),
        (lambda name: "C:\\Users\\me\\" + name.replace("/", "\\"), "backslashes read as /, C:/Users/me/ removed"),
        (
            lambda name: f"file:///elsewhere/{name}".replace(" ", "%20"),
            "%20 and the like decoded, file:/elsewhere/ removed",
        ),
    ],
)
def test_one_rule_repairs_all_paths_with_a_note(folder: Path, spell: Callable[[str], str], words: str):
    reading = listed(folder, spell)
    assert [(pair.name, pair.problem) for pair in reading.pairs] == [(f"images/é {n}.jpg", None) for n in range(6)]
    assert [pair.caption[-1] for pair in reading.pairs] == [pair.name[-5] for pair in reading.pairs]
    (note,) = reading.notes
    assert note.startswith("6 image paths repaired")
    assert words in note


def test_a_file_address_below_the_list_is_read(folder: Path):
    assert not any(pair.problem for pair in listed(folder, lambda name: f"file://{folder}/{name}").pairs)


def test_a_path_that_no_rule_repairs_names_the_nearest(folder: Path):
    reading = listed(folder, lambda name: name.replace("é 3", "e 3").replace("é 4.jpg", "é 4.png"))
    bad = {pair.entry: pair.problem or "" for pair in reading.pairs if pair.problem}
    assert list(bad) == [4, 5]
    assert bad[4].endswith("e 3.jpg; the nearest is 'images/é 3.jpg', correct the path")
    assert "the nearest is 'images/é 4.jpg'" in bad[5]
    assert reading.notes == []


def test_images_of_one_split_are_never_taken_for_those_of_another(tmp_path: Path):
    for number in range(4):
        image(tmp_path / "train" / f"{number}.jpg", number)
    rows = "\n".join(["image,caption", *(f"val/{n}.jpg,a thing {n}" for n in range(4))])
    assert all(pair.problem for pair in read(write(tmp_path / "all.csv", rows)).pairs)


def test_two_files_that_differ_by_case_only_are_not_guessed_between(tmp_path: Path):
    image(tmp_path / "images" / "a.jpg")
    image(tmp_path / "images" / "A.jpg", 1)
    image(tmp_path / "images" / "b.jpg", 2)
    reading = read(write(tmp_path / "all.csv", "image,caption\nimages/A.JPG,one\nimages/b.jpg,two\n"))
    assert [pair.problem is None for pair in reading.pairs] == [False, True]


def test_a_file_that_another_entry_has_is_not_given_away(tmp_path: Path):
    image(tmp_path / "images" / "a.jpg")
    reading = read(write(tmp_path / "all.csv", "image,caption\nimages/a.jpg,one\nold/images/a.jpg,two\n"))
    assert [pair.problem is None for pair in reading.pairs] == [True, False]


def test_absolute_paths_beside_the_folder_of_lists_are_found(folder: Path):
    (folder / "lists").mkdir()
    reading = listed(folder, lambda name: str(folder / name), "lists/train.tsv")
    assert not any(pair.problem for pair in reading.pairs)
    assert reading.root == folder
    assert "above the list's own folder" in reading.notes[0]


def test_absolute_paths_far_away_name_the_image_root_that_helps(folder: Path, tmp_path: Path):
    (tmp_path / "other" / "deep").mkdir(parents=True)
    reading = listed(folder, lambda name: str(folder / name), "../other/deep/train.tsv")
    said = reading.pairs[0].problem or ""
    root = Path(said.partition("--image-root ")[2])
    assert "leads out of" in said
    assert not any(pair.problem for pair in read(reading.path, image_root=root).pairs)


def test_an_image_root_is_not_advised_where_there_is_no_file(tmp_path: Path):
    reading = read(write(tmp_path / "all.csv", "image,caption\n/nowhere/at/all.jpg,a cat\n"))
    assert reading.pairs[0].problem == "no image at /nowhere/at/all.jpg; correct the path"


@pytest.mark.parametrize(
    ("head", "row"), [("URL,TEXT\n", "https://x.org/{n}.jpg?w=300,a {n}"), ("", "a {n},https://x.org/{n}")]
)
def test_a_list_of_urls_is_refused_once_with_the_count(tmp_path: Path, head: str, row: str):
    path = write(tmp_path / "all.csv", head + "\n".join(row.format(n=n) for n in range(7)))
    with pytest.raises(DataError, match=r"its 7 images are URLs, first 'https://x.org/0.*img2dataset") as caught:
        read(path)
    assert "--image-root" not in str(caught.value)


def test_some_urls_are_bad_pairs_and_counted(folder: Path):
    rows = "image,caption\nimages/é 0.jpg,one\nhttps://x.org/1.jpg,two\nhttp://x.org/2.jpg,three\n"
    reading = read(write(folder / "all.csv", rows))
    assert [pair.problem is None for pair in reading.pairs] == [True, False, False]
    assert reading.notes == ["2 images are URLs and are not used; download them first, for example with img2dataset."]
