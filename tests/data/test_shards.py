"""WebDataset shards: read in place by offset, whatever the names in them; nothing in them is ever run or extracted."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.config import DataConfig
from clip_core.data.dataset import load_data
from clip_core.data.formats.detect import Reading, read_data
from clip_core.data.formats.source import ReadOptions
from clip_core.data.image_files import Member, image_facts, is_image_there, member_of
from clip_core.data.preprocess import load_image
from clip_core.errors import DataError, ImageError
from clip_core.network import Preprocessing
from tests.pairs import check_pairs

Members = list[tuple[str, bytes]]


def png(number: int = 0, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (12, 10), (number * 6 % 256, 100, 200)).save(content, kind)
    return content.getvalue()


def shard(path: Path, members: Members, mode: str = "w", form: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(number: int, kind: str = "png") -> Members:
    return [(f"{number:04d}.{kind}", png(number)), (f"{number:04d}.txt", f"caption {number}\n".encode())]


def pairs_of(reading: Reading) -> list[tuple[str, str]]:
    return [(pair.name, pair.caption) for pair in check_pairs(reading.pairs).good]


class Bomb:
    """Unpickling one makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self):
        return Path.touch, (self.made,)


def test_images_and_captions_of_one_shard_a_folder_and_a_pattern(tmp_path: Path):
    for number in range(3):
        shard(tmp_path / f"set-{number:03d}.tar", [m for i in range(2) for m in sample(10 * number + i)])
    expected = [(f"set-{n:03d}.tar/{10 * n + i:04d}.png", f"caption {10 * n + i}") for n in range(3) for i in range(2)]
    assert pairs_of(read_data(tmp_path / "set-001.tar")) == expected[2:4]
    for path in (tmp_path, tmp_path / "set-{000..002}.tar", tmp_path / "set-00?.tar", tmp_path / "s{et,}-*.tar"):
        reading = read_data(path)
        assert (reading.format, pairs_of(reading)) == ("webdataset", expected)
    with pytest.raises(DataError, match=r"no shard at .*set-003\.tar"):
        read_data(tmp_path / "set-{000..003}.tar")
    with pytest.raises(DataError, match="no such file, folder or shard"):
        read_data(tmp_path / "other-*.tar")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_captions_in_json_long_names_and_images_of_any_kind(tmp_path: Path, form: int):
    long = "x" * 90 + "/" + "ä" * 20
    path = shard(
        tmp_path / "a.tar",
        [
            (f"{long}.left.webp", png(1, "WEBP")),
            (f"{long}.json", json.dumps({"caption": "from json", "url": "u"}).encode()),
            ("b.jpg", png(2, "JPEG")),
            ("b.json", json.dumps({"caption": "not this"}).encode()),
            ("b.txt", "this\n one".encode("utf-8-sig")),
            ("c.jpeg", png(3, "JPEG")),
            ("c.json", json.dumps({"text": ["one", "two"]}).encode()),
        ],
        form=form,
    )
    captions = [caption for _, caption in pairs_of(read_data(path))]
    assert captions == ["from json", "this one", "one", "two"]


def test_a_member_that_would_run_code_is_left_alone(tmp_path: Path):
    made = tmp_path / "made"
    bomb = pickle.dumps(Bomb(made))
    names = ["a.pkl", "a.pyd", "a.pickle", "a.pth", "a.npy", "a.py"]
    path = shard(tmp_path / "s" / "a.tar", [*sample(1), *((name, bomb) for name in names), ("0001.pyd", bomb)])
    assert pairs_of(read_data(path)) == [("a.tar/0001.png", "caption 1")]
    assert not made.exists()
    pickle.loads(bomb)
    assert made.exists()  # it would have


@pytest.mark.fault("hostile list, table or tar")
def test_hostile_names_are_only_names(tmp_path: Path):
    names = ["../../up", "/etc/absolute", "..", "a/../../b", "esc\x1b[2Jape", "new\nline", "bang!/1+2/x", os.sep]
    members = [(f"{name}.{kind}", content) for name in names for kind, content in (("png", png()), ("txt", b"c"))]
    path = shard(tmp_path / "deep" / "er" / "a.tar", members)
    before = sorted(tmp_path.rglob("*"))
    pairs = read_data(path).pairs
    assert len(check_pairs(pairs).good) >= len(names) - 2
    for pair in pairs:
        member = member_of(pair.image)
        assert member is not None
        assert member.shard == path
        assert pair.image.is_relative_to(f"{path}!")
        assert ".." not in pair.image.parts
        assert pair.image.name.isprintable()
        assert member_of(Path(os.path.abspath(pair.image))) == member  # noqa: PTH100
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.fault("hostile list, table or tar")
def test_links_devices_and_folders_are_not_opened(tmp_path: Path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    path = shard(tmp_path / "a.tar", sample(1))
    with tarfile.open(path, "a") as tar:
        for name, kind in (("2.png", tarfile.SYMTYPE), ("3.png", tarfile.LNKTYPE), ("4.png", tarfile.FIFOTYPE),
                           ("5.png", tarfile.CHRTYPE), ("6.png", tarfile.DIRTYPE)):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
    assert [pair.name for pair in read_data(path).pairs] == ["a.tar/0001.png"]


@pytest.mark.fault("hostile list, table or tar")
def test_samples_that_lack_a_part_are_bad_pairs_with_their_shard_and_name(tmp_path: Path):
    members = [
        *sample(1), ("2.png", png()), ("3.txt", b"alone"), ("4.png", png()), ("4.txt", b" \n"), ("5.png", png()),
        ("5.txt", b"\xff"), ("6.png", png()), ("6.json", b"{"), ("7.png", png()), ("7.json", b'{"caption": 3}'),
        ("8.png", b"no image"), ("8.txt", b"a caption"), (".hidden", b""), ("9", b""), ("x.cls", b"3"),
    ]  # fmt: skip
    report = check_pairs(read_data(shard(tmp_path / "a.tar", members)).pairs)
    assert [pair.caption for pair in report.good] == ["caption 1"]
    said = {bad.pair.place: bad.reason for bad in report.bad}
    assert said["a.tar, 2"] == "it has no .txt or .json with a caption"
    assert said["a.tar, 3"] == "it has a caption and no image"
    assert said["a.tar, 4"] == "the caption is empty"
    assert said["a.tar, 5"] == "its .txt is not text in UTF-8"
    assert said["a.tar, 6"] == "its .json is not JSON"
    assert said["a.tar, 7"] == "the caption 3 is not text"
    assert "not an image in a known format" in said["a.tar, 8"]
    assert len(said) == 7


@pytest.mark.fault("hostile list, table or tar")
def test_a_shard_that_is_empty_compressed_or_damaged_is_named(tmp_path: Path):
    whole = shard(tmp_path / "whole.tar", [m for i in range(5) for m in sample(i)]).read_bytes()
    for name, content, message in [
        ("empty.tar", b"", "is empty"),
        ("text.tar", b"hello" * 1000, "not a whole, uncompressed tar file"),
        ("cut.tar", whole[: len(whole) // 2 - 700], "not a whole, uncompressed tar file"),
        ("hole.tar", whole[:2048] + b"\xff" * 512 + whole[2560:], "damaged at byte 2,048"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_data(path)
        assert name in str(caught.value)
    shard(tmp_path / "gz.tar", sample(1), "w:gz")
    with pytest.raises(DataError, match=r"gz\.tar is not a whole, uncompressed tar file"):
        read_data(tmp_path / "gz.tar")
    shard(tmp_path / "named.tar.gz", sample(1), "w:gz")
    with pytest.raises(DataError, match=r"named\.tar\.gz is compressed, .*; unpack it first"):
        read_data(tmp_path / "named.tar.gz")
    shard(tmp_path / "none.tar", [("a.cls", b"1")])
    with pytest.raises(DataError, match=r"none\.tar holds no images with captions"):
        read_data(tmp_path / "none.tar")


def test_a_key_that_comes_again_is_another_sample(tmp_path: Path):
    members = [(f"{n:05d}.{kind}", content) for k in (0, 3) for n in range(3)
               for kind, content in (("png", png(k + n)), ("txt", f"caption {k + n}".encode()))]  # fmt: skip
    reading = read_data(shard(tmp_path / "a.tar", members))
    for pair in reading.pairs:
        assert load_image(pair.image).getpixel((0, 0))[0] == int(pair.caption.split()[1]) * 6
    assert [pair.name for pair in reading.pairs][2:4] == ["a.tar/00002.png", "a.tar/00000.png #2"]
    assert "3 keys come again, first 00000; image and caption in a row are a sample each time (a.tar)" in reading.notes
    assert reading.not_read == {}


@pytest.mark.parametrize(
    ("order", "captions", "left"),
    [
        ("i0 t0 i1 t1", ["0", "1"], 0),  # of one key, in a row
        ("t0 i0 t1 i1", ["0", "1"], 0),
        ("i0 t0 x i1 t1", ["0", "1"], 0),
        ("i0 i1 t0 t1", [], 4),  # which is whose cannot be told
        ("i0 x i1 t0 t1", [], 4),
        ("i0 x t0 x i1 x t1", [], 4),
        ("i0 t0 i1", [], 3),
        ("i0 t0 x i1", ["0"], 1),
        ("i0 t0 x t1", ["0"], 1),
        ("i0 x t0", ["0"], 0),  # a key that does not come again may be apart
        ("j0 t0 i1 s1", ["0", "1"], 0),  # cat.jpg, cat.txt, cat.png, cat.json
        ("j0 s0 x i1 t1", ["0", "1"], 0),
    ],
)
def test_an_image_never_gets_the_caption_of_another_of_its_key(
    tmp_path: Path, order: str, captions: list[str], left: int
):
    names = {"i": "k.png", "j": "k.jpg", "t": "k.txt", "s": "k.json"}
    members: Members = []
    for place, word in enumerate(order.split()):
        name, number = names.get(word[0], f"x{place}.txt"), word[1:]
        text = json.dumps({"caption": number}) if word[0] == "s" else number or "another"
        members.append((name, png(int(number)) if word[0] in "ij" else text.encode()))
    reading = read_data(shard(tmp_path / "a.tar", [("z.txt", b"another"), *members]))
    pairs = [pair for pair in reading.pairs if pair.problem is None]
    assert [pair.caption for pair in pairs] == captions
    for pair in pairs:
        assert load_image(pair.image).getpixel((0, 0))[0] == int(pair.caption) * 6
    assert sum(reading.not_read.values()) == left


def test_names_with_dots_of_their_own_are_not_one_sample(tmp_path: Path):
    kinds = (("jpg", "txt"), ("JPG", "jpg.txt"), ("jpeg", "json"))
    for image, text in kinds:
        members = []
        for n in range(4):
            caption = json.dumps({"caption": f"{n}"}) if text == "json" else f"{n}"
            members += [
                (f"2023.01.0{n}.{image}", png(n)),
                (f"2023.01.0{n}.{text}".replace("jpg.txt", f"{image}.txt"), caption.encode()),
            ]
        members += [("plain.jpg", png(9)), ("plain.txt", b"9")]
        reading = read_data(shard(tmp_path / f"{image}.tar", members))
        pairs = check_pairs(reading.pairs).good
        assert [pair.caption for pair in pairs] == ["0", "1", "2", "3", "9"]
        assert all(load_image(pair.image).getpixel((0, 0))[0] == int(pair.caption) * 6 for pair in pairs)
        assert any("keys go to the last dot" in note for note in reading.notes)


def test_names_with_dots_and_no_caption_of_their_own_get_none(tmp_path: Path):
    reading = read_data(shard(tmp_path / "a.tar", [("2023.01.jpg", png(1)), ("2023.02.txt", b"of the other")]))
    assert {pair.problem for pair in reading.pairs} == {
        "it has a caption and no image", "it has no .txt or .json with a caption"
    }  # fmt: skip
    views = [(f"{n}.{view}.png", png(n)) for n in range(3) for view in ("left", "right")]
    texts = [(f"{n}.txt", f"{n}".encode()) for n in range(3)]
    reading = read_data(shard(tmp_path / "b.tar", [*sorted([*views, *texts]), ("d.1.png", png()), ("d.2.txt", b"x")]))
    assert [(pair.name, pair.caption) for pair in reading.pairs] == [(f"b.tar/{n}.left.png", f"{n}") for n in range(3)]
    assert reading.not_read == {
        "images and captions beyond the first of their key": 3,
        "images and captions whose names differ after the first dot": 2,
    }


def test_archives_that_were_joined_are_read_to_the_end(tmp_path: Path):
    parts = [shard(tmp_path / f"{k}.tar", [m for n in range(2) for m in sample(n + 2 * k)]) for k in range(3)]
    same = shard(tmp_path / "same.tar", [("0000.png", png(40)), ("0000.txt", b"caption 40")])
    joined = tmp_path / "set" / "joined.tar"
    joined.parent.mkdir()
    joined.write_bytes(b"".join(part.read_bytes() for part in [*parts, same]))
    reading = read_data(joined)
    assert [pair.caption for pair in reading.pairs] == [f"caption {n}" for n in (*range(6), 40)]
    for pair in check_pairs(reading.pairs).good:
        assert load_image(pair.image).getpixel((0, 0))[0] == int(pair.caption.split()[1]) * 6 % 256
    assert "archives that were joined are read to the end (joined.tar)" in reading.notes
    joined.write_bytes(parts[0].read_bytes() + b"no archive" * 100)
    assert read_data(joined).not_read == {"bytes after the end of joined.tar": 1000}
    second = bytearray(parts[0].read_bytes() * 2)
    second[parts[0].stat().st_size + 2048 : parts[0].stat().st_size + 2560] = b"\xff" * 512
    joined.write_bytes(second)
    with pytest.raises(DataError, match="damaged at byte"):
        read_data(joined)


def test_members_and_files_that_are_not_read_are_counted(tmp_path: Path):
    members = [*sample(1), ("0001.cls", b"1"), ("0001.CR2", b"raw"), ("0001.json", b"{}"), ("._0001.png", b"fork")]
    shard(tmp_path / "a.tar", members)
    (tmp_path / "1.jpg").write_bytes(png())
    (tmp_path / "notes.txt").write_text("x")
    assert read_data(tmp_path).not_read == {".cls": 1, ".cr2": 1, ".jpg": 1, ".txt": 1}


def test_a_member_is_a_path_that_every_reader_of_images_takes(tmp_path: Path):
    (pair,) = read_data(shard(tmp_path / "a.tar", [("dir/cat.png", png(5)), ("dir/cat.txt", b"a cat")])).pairs
    assert str(pair.image) == f"{tmp_path}/a.tar!/512+{len(png(5))}/cat.png"
    assert load_image(pair.image).size == load_image(str(pair.image)).size == (12, 10)
    facts = (tmp_path / "a.tar").stat()
    assert image_facts(pair.image) == (len(png(5)), max(facts.st_mtime_ns, facts.st_ctime_ns))
    assert is_image_there(pair.image)
    assert not is_image_there(tmp_path / "b.tar!" / "512+3" / "x.png")


@pytest.mark.parametrize(
    ("offset", "size", "said"),
    [(511, 5, "no member"), (512, 5, "no member"), (10**9, 5, "no member"), (512, 10**11, "shrink")],
)
def test_a_path_that_is_no_member_reads_nothing(tmp_path: Path, offset: int, size: int, said: str):
    path = shard(tmp_path / "a.tar", sample(1))
    with pytest.raises(ImageError, match=said):
        load_image(Member(path, offset, size).path("x.png"))
    with pytest.raises(ImageError, match=r"no image at .*gone\.tar!"):
        load_image(Member(tmp_path / "gone.tar", 512, 5).path("x.png"))


def test_a_shard_that_changed_is_not_read_at_the_old_place(tmp_path: Path):
    path = shard(tmp_path / "a.tar", sample(1))
    (pair,) = read_data(path).pairs
    shard(path, [("0000.txt", b"longer" * 200), *sample(2)])
    with pytest.raises(ImageError, match="it has changed"):
        load_image(pair.image)


def test_a_list_may_name_members_but_not_of_a_shard_outside_its_folder(tmp_path: Path):
    (inside,) = read_data(shard(tmp_path / "set" / "a.tar", sample(1))).pairs
    (outside,) = read_data(shard(tmp_path / "b.tar", sample(2))).pairs
    (tmp_path / "set" / "link.tar").symlink_to(tmp_path / "b.tar")
    linked = str(outside.image).replace("/b.tar!", "/set/link.tar!")
    entries = [{"image": str(image), "caption": "c"} for image in (inside.image, outside.image, linked)]
    (tmp_path / "set" / "pairs.json").write_text(json.dumps(entries))
    report = check_pairs(read_data(tmp_path / "set" / "pairs.json").pairs)
    assert [pair.image for pair in report.good] == [inside.image]
    assert all("leads out of" in bad.reason for bad in report.bad)


def test_shards_train_as_files_do(tmp_path: Path):
    shard(tmp_path / "a.tar", [m for i in range(20) for m in sample(i)])
    shard(tmp_path / "b.tar", [m for i in range(20, 40) for m in sample(i)])
    for number in range(40):
        (tmp_path / "files" / f"{number:04d}.png").parent.mkdir(exist_ok=True)
        (tmp_path / "files" / f"{number:04d}.png").write_bytes(png(number))
    square = Preprocessing(image_size=8)
    said: list[str] = []
    data = load_data(DataConfig(data_file=tmp_path / "{a,b}.tar"), square, 0, said.append)
    assert "read as webdataset: 2 .tar shards" in said[0]
    for part, store in ((data.train, data.train_store), (data.val, data.val_store)):
        for row, image in enumerate(part.images):
            plain = load_image(tmp_path / "files" / image.name).resize((8, 8))
            assert store.get(np.array([row]))[0, 4, 4].tolist() == list(np.asarray(plain)[4, 4])
    assert {name[:6] for name in data.val.names} <= {"a.tar/", "b.tar/"}


def test_the_wish_for_shards_can_be_said(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(DataError, match=r"no \.tar at"):
        read_data(tmp_path, ReadOptions(format="webdataset"))
