"""Folders of images as people have them: captions beside, apart or missing, links, splits, and what is no data."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from clip_core.data.formats.detect import Reading, read_data
from clip_core.data.formats.source import ReadOptions
from clip_core.errors import DataError
from tests.data.sets import write
from tests.pairs import check_pairs


def image(path: Path, number: int = 0, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (number * 20 % 256, 100, 200)).save(path, kind)
    return path


def captioned(path: Path, caption: str, name: str = "{stem}.txt") -> None:
    image(path)
    write(path.parent / name.format(stem=path.stem, name=path.name), caption)


def captions(reading: Reading) -> dict[str, str]:
    """Name -> caption of the usable pairs, after every image was decoded."""
    return {pair.name: pair.caption for pair in check_pairs(reading.pairs).good}


# ---------------------------------------------------------------- captions in files of their own


@pytest.mark.parametrize("name", ["{stem}.caption", "{name}.txt", "{stem}.TXT", "{stem}.Caption", "{name}.caption"])
def test_captions_are_read_under_every_name_that_tools_give_them(tmp_path: Path, name: str):
    for number in range(3):
        captioned(tmp_path / "set" / "10_cat" / f"{number}.v1.jpg", f"caption {number}", name)
    reading = read_data(tmp_path / "set")
    assert reading.format == "sidecar"
    assert captions(reading) == {f"10_cat/{n}.v1.jpg": f"caption {n}" for n in range(3)}
    assert any("10_cat" in note and "ignored" in note for note in reading.notes)
    assert reading.not_read == {}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_captions_are_read_in_every_encoding_and_with_every_line_ending(tmp_path: Path, encoding: str, ending: str):
    image(tmp_path / "1.jpg")
    write(tmp_path / "1.txt", f"a cat on grass{ending}{ending}a bear{ending}".encode(encoding))
    assert [pair.caption for pair in read_data(tmp_path).pairs] == ["a cat on grass", "a bear"]


def test_where_some_captions_exist_the_folders_are_no_classes(tmp_path: Path):
    for folder in ("a", "b"):
        for number in range(6):
            image(tmp_path / folder / f"{number}.jpg")
    write(tmp_path / "b" / "5.txt", "a red square")
    reading = read_data(tmp_path)
    assert captions(reading) == {"b/5.jpg": "a red square"}
    assert sum(pair.problem is not None for pair in reading.pairs) == 11
    assert "11 of 12 images have no captions" in reading.notes


def test_captions_in_a_folder_beside_that_of_the_images(tmp_path: Path):
    for split in ("train", "val"):
        for number in range(3):
            image(tmp_path / "images" / split / f"{number}.jpg")
            write(tmp_path / "text" / split / f"{number}.txt", f"{split} {number}")
    write(tmp_path / "text" / "train" / "9.txt", "of no image")
    reading = read_data(tmp_path)
    assert captions(reading) == {f"images/{s}/{n}.jpg": f"{s} {n}" for s in ("train", "val") for n in range(3)}
    assert [pair.split for pair in reading.pairs] == ["train"] * 3 + ["val"] * 3
    assert reading.not_read == {"files of captions without an image": 1}
    assert any("images/ and text/" in note for note in reading.notes)


def test_captions_that_fit_several_images_or_folders_are_refused(tmp_path: Path):
    image(tmp_path / "set" / "cat" / "1.jpg")
    image(tmp_path / "set" / "dog" / "1.jpg")
    write(tmp_path / "set" / "captions" / "1.txt", "a cat or a dog")
    with pytest.raises(DataError, match=r"1\.txt may be the caption of .*cat.* or of .*dog"):
        read_data(tmp_path / "set")
    image(tmp_path / "two" / "images" / "1.jpg")
    write(tmp_path / "two" / "long" / "1.txt", "a cat that is asleep")
    write(tmp_path / "two" / "short" / "1.txt", "a cat")
    with pytest.raises(DataError, match=r"has captions in both .*long.* and .*short"):
        read_data(tmp_path / "two")


def test_an_image_never_takes_the_caption_of_one_in_another_class_folder(tmp_path: Path):
    captioned(tmp_path / "cat" / "1.jpg", "a cat")
    image(tmp_path / "dog" / "1.jpg")
    assert captions(read_data(tmp_path)) == {"cat/1.jpg": "a cat"}


def test_boxes_of_object_detection_are_no_captions(tmp_path: Path):
    for number in range(3):
        image(tmp_path / "images" / f"{number}.jpg")
        write(tmp_path / "labels" / f"{number}.txt", "0 0.5 0.5 0.25 0.1\n3 0.1 0.2 0.3 0.4\n")
    with pytest.raises(DataError, match="hold numbers, as of object detection, and no captions"):
        read_data(tmp_path)


def test_second_captions_and_those_shared_by_two_images_are_said(tmp_path: Path):
    captioned(tmp_path / "1.jpg", "a cat")
    write(tmp_path / "1.caption", "tags, of, a, cat")
    image(tmp_path / "1.png")
    reading = read_data(tmp_path)
    assert captions(reading) == {"1.jpg": "a cat", "1.png": "a cat"}
    assert reading.not_read == {".caption of images that have a .txt": 1}
    assert any("differ in their suffix" in note for note in reading.notes)


def test_unread_images_and_their_captions_are_counted(tmp_path: Path):
    captioned(tmp_path / "1.jpg", "a cat")
    for name in ("a.CR2", "b.cr2", "c.dng", "notes.md"):
        write(tmp_path / name, "raw")
    write(tmp_path / "a.txt", "a raw cat")
    write(tmp_path / "table.csv", "x,y\n1,2\n")
    write(tmp_path / "Thumbs.db", "x")
    reading = read_data(tmp_path)
    assert reading.not_read == {".cr2": 2, ".dng": 1, ".md": 1, ".csv": 1, "files of captions without an image": 1}


# ---------------------------------------------------------------- classes


def test_the_number_in_front_of_a_class_is_no_part_of_it(tmp_path: Path):
    for name in ("10_cat", "5_big dog", "001.Albatross", "7", "3d_printer"):
        image(tmp_path / name / "1.jpg")
    reading = read_data(tmp_path)
    assert set(captions(reading).values()) == {
        f"a photo of a {name}" for name in ("cat", "big dog", "Albatross", "7", "3d printer")
    }
    assert any("3 folders' names is no part of the class" in note for note in reading.notes)
    assert any("codes and no words, such as 7" in note for note in reading.notes)


@pytest.mark.parametrize("layout", ["{split}/{name}/{n}.png", "{name}/{split}/{n}.png"])
def test_class_folders_in_split_folders_have_splits(tmp_path: Path, layout: str):
    for n, (split, name) in enumerate([("Train", "cat"), ("Train", "dog"), ("test", "cat"), ("validation", "dog")]):
        image(tmp_path / layout.format(split=split, name=name, n=n), n)
    reading = read_data(tmp_path)
    assert {(Path(pair.name).stem, pair.caption, pair.split) for pair in reading.pairs} == {
        ("0", "a photo of a cat", "train"), ("1", "a photo of a dog", "train"),
        ("2", "a photo of a cat", "test"), ("3", "a photo of a dog", "val"),
    }  # fmt: skip
    assert any(note.startswith("splits by the folders' names: ") for note in reading.notes)


def test_splits_beside_other_folders_are_refused_and_a_class_called_train_is_one(tmp_path: Path):
    for name in ("train/cat/1.png", "test/cat/2.png", "examples/3.png"):
        image(tmp_path / "mixed" / name)
    with pytest.raises(DataError, match=r"holds the splits test, train and beside them examples; name one: --data"):
        read_data(tmp_path / "mixed")
    for name in ("train/1.png", "bus/2.png"):
        image(tmp_path / "vehicles" / name)
    assert set(captions(read_data(tmp_path / "vehicles")).values()) == {"a photo of a train", "a photo of a bus"}


def test_runs_bundles_and_caches_are_never_classes(tmp_path: Path):
    for name in ("cat/1.png", "dog/2.png", "runs/a/training_results.png", "dog/out/plot.png", "tmp/3.png"):
        image(tmp_path / name)
    (tmp_path / "runs" / "a" / "checkpoints").mkdir()
    write(tmp_path / "runs" / "a" / "status.json", json.dumps({"state": "done"}))
    write(tmp_path / "dog" / "out" / "manifest.json", "{}")
    (tmp_path / "dog" / "out" / "onnx").mkdir()
    write(tmp_path / "tmp" / "CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55")
    reading = read_data(tmp_path)
    assert set(captions(reading)) == {"cat/1.png", "dog/2.png"}
    assert reading.not_read == {"a run directory (runs/a)": 1, "a bundle (dog/out)": 1, "a cache (tmp)": 1}


def test_folders_without_captions_say_what_lies_there_and_the_way_out(tmp_path: Path):
    image(tmp_path / "one" / "cat" / "1.jpg")
    image(tmp_path / "flat" / "1.jpg")
    write(tmp_path / "flat" / "other.txt", "words")
    image(tmp_path / "masks" / "images" / "1.jpg")
    image(tmp_path / "masks" / "masks" / "1.jpg")
    image(tmp_path / "deep" / "pets" / "cat" / "1.jpg")
    image(tmp_path / "deep" / "pets" / "dog" / "1.jpg")
    image(tmp_path / "lists" / "images" / "1.jpg")
    write(tmp_path / "lists" / "lists" / "train.csv", "image,caption\n../images/1.jpg,a cat\n")
    for name, said in [
        (
            "one",
            r"has 1 image in one folder, cat, and no captions: .*; --format class-folders makes each",
        ),
        ("flat", r"has 1 image and no captions \(1 \.txt match no image by name\): add a NAME\.txt beside each"),
        ("masks", r"has 2 images in images, masks and no captions"),
        ("deep", r"holds one folder, pets, with 2 folders in it: name .*pets\."),
        ("lists", r"is a folder with lists and no data set itself; name a list: .*train\.csv\."),
    ]:
        with pytest.raises(DataError, match=said) as caught:
            read_data(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert set(captions(read_data(tmp_path / "one", ReadOptions(format="class-folders"))).values()) == {
        "a photo of a cat"
    }


@pytest.mark.parametrize("name", ["captions.txt", "labels.csv", "deep/all.json"])
def test_beside_a_list_that_names_images_folders_are_no_classes(tmp_path: Path, name: str):
    for folder in ("left", "right"):
        image(tmp_path / folder / "1.jpg")
    write(tmp_path / name, "left/1.jpg,a cat\nright/1.jpg,a dog\n")
    with pytest.raises(DataError, match=rf"is a folder with lists .*; name a list: .*{name}\.$"):
        read_data(tmp_path)
    write(tmp_path / name, "made by hand in 2024\n")
    assert read_data(tmp_path).format == "class-folders"


def test_classes_with_folders_of_their_own_and_images_beside_them_are_said(tmp_path: Path):
    for name in ("pets/cat/1.png", "pets/dog/2.png", "cars/3.png", "cover.png"):
        image(tmp_path / name)
    reading = read_data(tmp_path)
    assert captions(reading)["pets/dog/2.png"] == "a photo of a pets"
    assert "the folders in pets (cat, dog) are one class, called pets" in reading.notes
    assert reading.not_read == {"images in no class folder": 1}


# ---------------------------------------------------------------- links


def test_links_to_images_captions_and_class_folders_are_followed(tmp_path: Path):
    image(tmp_path / "elsewhere" / "1.jpg")
    image(tmp_path / "all" / "2.jpg")
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
    (tmp_path / "set" / "fox").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "cat" / "a.jpg").symlink_to("../../all/2.jpg")
    (tmp_path / "set" / "dog" / "b.jpg").symlink_to("../../all/2.jpg")
    reading = read_data(tmp_path / "set")
    assert [(pair.name, pair.caption) for pair in reading.pairs] == [
        ("cat/a.jpg", "a photo of a cat"),
        ("cat/a.jpg", "a photo of a dog"),  # one image: its captions are never negatives of each other
        ("fox/1.jpg", "a photo of a fox"),
    ]
    assert len(check_pairs(reading.pairs).good) == 3
    assert "3 links are followed" in reading.notes


def test_captions_that_are_links_are_followed_to_where_their_images_are(tmp_path: Path):
    captioned(tmp_path / "all" / "1.jpg", "a cat")
    write(tmp_path / "private" / "key.txt", "a secret")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.jpg").symlink_to("../all/1.jpg")
    (tmp_path / "set" / "1.txt").symlink_to("../all/1.txt")
    image(tmp_path / "set" / "2.jpg")
    (tmp_path / "set" / "2.txt").symlink_to("../private/key.txt")
    reading = read_data(tmp_path / "set")
    assert captions(reading) == {"1.jpg": "a cat"}
    assert "2.txt leads out of" in str(reading.pairs[1].problem)


def test_loops_devices_and_links_to_nothing_are_named(tmp_path: Path):
    top = tmp_path / "set"
    for name in ("cat/1.jpg", "dog/2.jpg"):
        image(top / name)
    (top / "cat" / "up").symlink_to("..")
    (top / "again").symlink_to("cat")
    (top / "dog" / "null.jpg").symlink_to("/dev/null")
    (top / "dog" / "gone.jpg").symlink_to("gone")
    (top / "dog" / "self.jpg").symlink_to("self.jpg")
    os.mkfifo(top / "dog" / "pipe.jpg")
    reading = read_data(top)
    assert set(captions(reading)) == {"cat/1.jpg", "dog/2.jpg"}
    assert reading.not_read == {
        "linked folders that are above, or read already": 2,
        "links that lead to no file": 3,
        "devices, pipes and sockets": 1,
    }


def test_a_hub_snapshot_is_read_through_its_links(tmp_path: Path):
    for revision in ("0a1b", "2c3d"):
        place = tmp_path / "hub" / "snapshots" / revision
        place.mkdir(parents=True)
        for number in range(2):
            image(tmp_path / "hub" / "blobs" / f"{revision}{number}", number, "JPEG")
            (place / f"{number}.jpg").symlink_to(f"../../blobs/{revision}{number}")
        write(tmp_path / "hub" / "blobs" / f"{revision}m", f"file_name,text\n0.jpg,{revision} 0\n1.jpg,{revision} 1\n")
        (place / "metadata.csv").symlink_to(f"../../blobs/{revision}m")
    assert captions(read_data(tmp_path / "hub" / "snapshots" / "0a1b")) == {"0.jpg": "0a1b 0", "1.jpg": "0a1b 1"}
    with pytest.raises(DataError, match=r"is a hub cache with 2 snapshots; name one: .*0a1b or .*2c3d"):
        read_data(tmp_path / "hub")
    write(tmp_path / "hub" / "refs" / "main", "2c3d")
    assert captions(read_data(tmp_path / "hub"))["1.jpg"] == "2c3d 1"


# ---------------------------------------------------------------- folders with metadata


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_in_split_folders_gives_the_splits(tmp_path: Path, name: str):
    for split in ("train", "validation", "test"):
        for number in range(2):
            image(tmp_path / split / f"{number}.jpg", number)
        rows = [("file_name", "text"), *((f"{n}.jpg", f"{split} {n}") for n in range(2))]
        lines = [json.dumps({"file_name": f, "text": t}) for f, t in rows[1:]]
        write(tmp_path / split / name, "\n".join(lines if "json" in name else [f"{f},{t}" for f, t in rows]))
    reading = read_data(tmp_path)
    assert reading.format == "imagefolder"
    assert captions(reading)["validation/1.jpg"] == "validation 1"
    assert [pair.split for pair in reading.pairs] == ["test"] * 2 + ["train"] * 2 + ["val"] * 2
    assert [pair.entry for pair in reading.pairs] == [1, 2, 3, 4, 5, 6]
    assert any("test (2 pairs), train (2 pairs), val (2 pairs)" in note for note in reading.notes)
    assert reading.pairs[0].place.startswith(f"test/{name}, line ")


def test_metadata_at_the_top_may_name_split_folders_and_leave_images_out(tmp_path: Path):
    for name in ("train/1.jpg", "test/2.jpg", "test/3.jpg"):
        image(tmp_path / name)
    write(tmp_path / "metadata.csv", "file_name,text\ntrain/1.jpg,a cat\ntest/2.jpg,a dog\n")
    write(tmp_path / "classes.csv", "id,name\n")
    reading = read_data(tmp_path)
    assert {pair.name: pair.split for pair in reading.pairs} == {"train/1.jpg": "train", "test/2.jpg": "test"}
    assert reading.not_read == {"images that metadata.csv does not name": 1, ".csv": 1}


def test_metadata_of_one_folder_among_others_gives_no_splits(tmp_path: Path):
    for name in ("train/1.jpg", "bus/2.jpg"):
        image(tmp_path / name)
    write(tmp_path / "metadata.csv", "file_name,text\ntrain/1.jpg,a train\nbus/2.jpg,a bus\n")
    assert {pair.split for pair in read_data(tmp_path).pairs} == {None}
