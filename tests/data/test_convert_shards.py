"""clip-data convert to WebDataset shards: what is read from them is what was written, and nothing is half there."""

import io
import json
import resource
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from clip_core.cli.data import main
from clip_core.data.convert_shards import write_shards
from clip_core.data.formats.detect import read_data
from clip_core.data.image_files import read_content
from clip_core.data.shard_writer import parse_size
from clip_core.data.stream.samples import read_samples
from clip_core.data.stream.shard_list import counted_pairs, list_shards, of_split
from clip_core.data.stream.source import open_source
from clip_core.errors import DataError, UsageError

Found = Counter[tuple[bytes, str]]  # contents of the image, and caption

ODD = ["two  spaces\nand a line", "\x1b[2Jred", "ÿ é 猫 🐈", "c\0a\0t\0s\0 \0", "(a) 'list', [of] \\x00"]


def image(path: Path, number: int, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), (number % 256, number // 256, 90)).save(path, kind)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A list of 60 images, sorted by class and split: some with several captions, names and captions that are odd."""
    names = [f"class {n // 20}/photo.of.{n:02d}.png" for n in range(60)]
    names[3:8] = ["..hidden.tar.gz.png", "x\x1b[31m.JPEG", "no_suffix", "ü/" + "long" * 40 + ".webp", "a\\b{c}*.png"]
    entries = []
    for number, name in enumerate(names):
        kind = {".JPEG": "JPEG", ".webp": "WEBP"}.get(Path(name).suffix, "PNG")
        image(tmp_path / "set" / name, number, kind)
        captions = [f"{word} {number}" for word in ("cat", "dog", "fox")[: 1 + number % 3]]
        split = ("train", "val", "test", None)[number // 20 if number < 50 else 3]
        entries.append({"image": name, "caption": captions, "split": split})
    for entry, caption in zip(entries[10:], ODD, strict=False):
        entry["caption"] = caption
    entries[1]["caption"] = [*ODD, "cat 1"]
    entries.append({"image": names[0], "caption": "of two splits", "split": "val"})
    entries.append({"image": "gone.png", "caption": ["a ghost", "another"], "split": "train"})
    (tmp_path / "set" / "pairs.json").write_text(json.dumps(entries))
    return tmp_path / "set" / "pairs.json"


def indexed(path: Path, *splits: str | None) -> Found:
    pairs = [pair for pair in read_data(path).pairs if not pair.problem and (not splits or pair.split in splits)]
    return Counter((read_content(pair.image), pair.caption) for pair in pairs)


def streamed(pattern: str) -> Found:
    found: Found = Counter()
    ignored: Counter[str] = Counter()
    for number, url in enumerate(list_shards(Path(pattern)).urls):
        with open_source(url) as opened:
            for sample in read_samples(opened, number, ignored):
                assert not sample.bad
                found.update((pair.image, pair.caption) for pair in sample.pairs)
    assert not ignored
    return found


def names_in(folder: Path) -> list[str]:
    found = []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            found += tar.getnames()
    return found


def test_both_readers_find_the_pairs_and_splits_of_the_source(source: Path):
    out = source.parent.parent / "shards"
    written = write_shards(read_data(source), out, shard_bytes=20_000)
    assert (written.left_out, written.without_split) == (2, sum(1 + n % 3 for n in range(50, 60)))
    assert {part.split for part in written.parts} == {"train", "val", "test"}
    for part in written.parts:
        splits = ("train", None) if part.split == "train" else (part.split,)
        expected = indexed(source, *splits)
        assert expected.total() == part.pairs
        assert indexed(out, part.split) == streamed(part.pattern(out)) == expected
        shards = list_shards(Path(part.pattern(out)))
        assert len(shards.urls) == part.shards > 1
        assert of_split(list_shards(out), str(part.split))[0].urls == shards.urls
        assert counted_pairs(shards) == part.pairs
    reading = read_data(out)
    assert (reading.not_read, reading.notes) == ({}, [])
    assert all(shard.stat().st_size <= 20_000 for shard in out.glob("*.tar"))
    names = names_in(out)
    assert len(set(names)) == len(names)
    assert all(name[:9].isdecimal() and name[9:] in (".png", ".jpg", ".webp", ".txt", ".json") for name in names)
    again = out.with_name("again")  # from members of shards, which have other bad names
    write_shards(reading, again, shard_bytes=10**6)
    assert [indexed(again, split) for split in ("train", "val", "test")] == [
        indexed(out, split) for split in ("train", "val", "test")
    ]
    assert [(item.name, item.stat().st_mode & 0o777) for item in again.glob("val*")] == [("val-00000.tar", 0o644)]


def test_a_txt_goes_before_a_json_that_says_something_else(tmp_path: Path):
    content = image(tmp_path / "a.png", 1).read_bytes()
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as tar:
        for name, part in (("1.png", content), ("1.txt", b"a cat"), ("1.json", b'{"text": ["STOP", "a cat"]}')):
            info = tarfile.TarInfo(name)
            info.size = len(part)
            tar.addfile(info, io.BytesIO(part))
    assert [pair.caption for pair in read_data(tmp_path / "shards").pairs] == ["a cat"]


def test_the_same_seed_gives_the_same_bytes_and_another_the_same_samples_in_another_order(source: Path):
    def contents(name: str, seed: int | None) -> tuple[dict[str, bytes], list[str]]:
        out = source.parent.parent / name
        write_shards(read_data(source), out, shard_bytes=20_000, seed=seed)
        return {item.name: item.read_bytes() for item in out.iterdir()}, names_in(out)

    first, names = contents("first", 0)
    assert contents("second", 0)[0] == first
    other, kept = contents("other", 1)[1], contents("kept", None)[1]
    assert sorted(names) == sorted(other) == sorted(kept)
    assert names != other
    assert kept != names
    order = list(dict.fromkeys(int(name[:9]) for name in kept))  # shards of test, train and val
    assert order == [*range(40, 50), *range(20), *range(50, 60), *range(20, 40), 60]


def test_an_image_that_cannot_be_copied_is_left_out_and_counted(source: Path, capsys: pytest.CaptureFixture[str]):
    (source.parent / "class 0" / "photo.of.02.png").write_bytes(b"")
    (source.parent / "no_suffix").write_bytes(b"<html>")
    flags = source.with_name("flags.json")
    flagged = {"image": str(source.parent / "class 1" / "photo.of.21.png"), "caption": "cat 21"}
    flags.write_text(json.dumps({"schema": 1, "pairs": [flagged | {"where": "x", "reason": "bad"}]}))
    out = source.parent.parent / "my shards"
    assert main(["convert", str(source), str(out), "--shard-size", "20kB"]) == 0
    said = capsys.readouterr().out
    assert "left out 8 unusable pairs, first entry 62: no image at" in said
    count = indexed(source).total() - 6
    assert f"wrote {count:,} pairs of 59 images" in said
    assert f"clip-train --data '{out}/train-{{00000..0000" in said
    assert indexed(out).total() == count


def test_interrupted_or_without_room_nothing_is_left(source: Path):
    out, reading = source.parent.parent / "new" / "shards", read_data(source)

    def interrupt(done: int, total: int) -> None:
        if done == 40:
            assert not out.exists()
            assert list_shards_below(out.parent) == []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="40 of 61 images were written, and nothing is kept"):
        write_shards(reading, out, shard_bytes=10_000, progress=interrupt)
    assert list(out.parent.iterdir()) == []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot be written .*nothing of it is kept"):
            write_shards(reading, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(out.parent.iterdir()) == []
    out.mkdir()  # an empty folder will do
    assert write_shards(reading, out).parts


def list_shards_below(folder: Path) -> list[str]:
    try:
        return list_shards(folder).urls
    except DataError:
        return []


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["full"], "full is not empty; give another folder"),
        (["pairs.json", "--to", "webdataset"], "pairs.json is a file"),
        (["s3://bucket/set"], "is an address"),
        (["set-{0..9}", "--to", "webdataset"], "rename it"),
        (["all.tar"], "say --to json or --to webdataset"),
        (["new", "--shard-size", "10000"], "give bytes with a unit, as 500MB"),
        (["new", "--copy-images"], "--copy-images is not for --to webdataset"),
        (["new.json", "--seed", "1"], "--seed is not for --to json"),
        (["new", "--seed", "1", "--no-shuffle"], "leave one of them out"),
    ],
)
def test_where_shards_cannot_be_written(
    flags: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "full" / "1.png", 1)
    Path("pairs.json").write_text('[{"image": "full/1.png", "caption": "a cat"}]')
    assert main(["convert", "pairs.json", *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert {item.name for item in tmp_path.iterdir()} == {"full", "pairs.json"}


def test_sizes_have_units():
    sizes = [parse_size(text) for text in ("500MB", "1.5 gb", "256MiB", "20kB")]
    assert sizes == [500_000_000, 1_500_000_000, 2**28, 20_000]
    with pytest.raises(UsageError, match="--shard-size"):
        parse_size("5TB")
