"""clip-data, as it is typed."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from clip_core.cli.data import main


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Thirty good pairs with long and repeated captions, and two bad ones."""
    Image.new("RGB", (30, 20)).save(tmp_path / "wide.png")
    Image.new("RGB", (10, 10)).save(tmp_path / "small.png")
    entries = [{"image": "wide.png", "caption": f"caption {n % 10}"} for n in range(29)]
    entries += [{"image": "small.png", "caption": "long " * 100}, {"image": "small.png", "caption": " "}]
    entries.insert(4, {"image": "\x1b[31mgone.png", "caption": "a ghost"})
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    return tmp_path / "pairs.json"


def test_check_says_what_training_would_make_of_the_list(mixed: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", str(mixed), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["usable_pairs"], found["images"]) == (30, 2)
    assert (found["captions"], found["repeated_captions"]) == (11, 19)
    assert found["image_sizes"] == {"smallest": [10, 10], "median": [30, 20], "largest": [30, 20]}
    assert [bad["entry"] for bad in found["bad_pairs"]] == [5, 32]
    assert [(fit["kind"], fit["truncated"]) for fit in found["tokenizers"]][:2] == [("char", 1), ("bpe", 1)]


def test_the_text_names_each_bad_pair_and_no_escape_reaches_the_terminal(
    mixed: Path, capsys: pytest.CaptureFixture[str]
):
    main(["check", str(mixed), "--image_root", str(mixed.parent)])
    out = capsys.readouterr().out
    assert "entry 5: no image at" in out
    assert "entry 32: the caption is empty" in out
    assert "\x1b" not in out


def test_a_list_with_nothing_usable_is_still_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "pairs.json").write_text('[{"image": "gone.png", "caption": "a ghost"}]')
    assert main(["check", str(tmp_path / "pairs.json")]) == 1
    assert "images      none" in capsys.readouterr().out


def test_equal_images_and_equal_captions_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number in range(4):
        Image.new("RGB", (4, 4), (number // 2, 0, 0)).save(tmp_path / f"{number}.bmp")
    entries = [{"image": f"{number}.bmp", "caption": "A photo"} for number in range(4)]
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    assert main(["check", str(tmp_path / "pairs.json")]) == 0
    out = capsys.readouterr().out
    assert "pixels; 2 with the content of an earlier one\n" in out
    assert "captions    1 distinct, 3 repeated: all are the same, so there is nothing to learn\n" in out


def test_drawn_shapes_pass_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    drawn = [
        "synthetic",
        str(tmp_path / "shapes"),
        "--count",
        "36",
        "--size",
        "32",
        "--holdout-combinations",
        "2",
    ]
    assert main(drawn) == 0
    for name in ("dataset.json", "dataset_unseen.json"):
        assert main(["check", str(tmp_path / "shapes" / name)]) == 0
    assert main(drawn) == 2
    assert "exists; give another name" in capsys.readouterr().err


@pytest.fixture
def shard(mixed: Path) -> Path:
    """The small image in a tar shard, under a hostile name, with two captions' worth of JSON."""
    path = mixed.parent / "shards" / "a.tar"
    path.parent.mkdir()
    captions = json.dumps({"caption": ["one \x1b[2J", "two"]}).encode()
    with tarfile.open(path, "w") as tar:
        for name, content in (("../up.png", (mixed.parent / "small.png").read_bytes()), ("../up.json", captions)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_info_says_what_was_recognised_and_shows_three_pairs(mixed: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["info", str(mixed)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == ["format      json: it is a JSON list", "images in   image", "captions in caption"]
    assert "pairs       32 of 2 images, 11 distinct captions" in lines
    assert "unusable    2 pairs, before any image is decoded" in lines
    assert any(line.startswith("  entry 5: no image at") for line in lines)
    assert lines[5] == "examples    wide.png   caption 0"
    assert lines[7].startswith(f"{'':11} small.png  long long")


def test_info_of_a_table_names_its_columns(mixed: Path, capsys: pytest.CaptureFixture[str]):
    table = mixed.with_name("all.tsv")
    table.write_text("n\tfile\twords\n1\twide.png\ta \x1b[2Jcat\n")
    main(["info", str(table)])
    text = capsys.readouterr().out
    assert "images in   file" in text
    assert "captions in words" in text
    assert "\x1b" not in text
    main(["info", str(table), "--json", "--caption-column", "n"])
    found = json.loads(capsys.readouterr().out)
    assert found["columns"] == {"image": "file", "caption": "n"}
    assert found["examples"] == [{"image": str(mixed.parent / "wide.png"), "caption": "1"}]


def test_any_format_is_checked(shard: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", str(shard)]) == 0
    out = capsys.readouterr().out
    assert "format      webdataset: 1 .tar shard\n" in out
    assert "2 usable pairs with 1 image" in out
    assert main(["check", str(shard), "--format", "csv"]) == 1


def test_a_list_is_converted_without_moving_an_image(mixed: Path, capsys: pytest.CaptureFixture[str]):
    beside = mixed.with_name("out.json")
    assert main(["convert", str(mixed), str(beside)]) == 0
    assert "without 2 unusable." in capsys.readouterr().out
    assert json.loads(beside.read_text())[0]["image"] == "wide.png"
    elsewhere = mixed.parent / "other" / "out.json"
    assert main(["convert", str(mixed), str(elsewhere)]) == 0
    assert f"use it with --image-root {mixed.parent}" in capsys.readouterr().out
    assert main(["info", str(elsewhere), "--image-root", str(mixed.parent), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"], found["unusable"]) == (30, 0)
    assert main(["convert", str(mixed), str(elsewhere)]) == 2
    assert "already there" in capsys.readouterr().err


def test_splits_are_kept_when_a_list_is_converted(mixed: Path):
    table, out = mixed.with_name("splits.csv"), mixed.with_name("splits.json")
    table.write_text("image,caption,split\nwide.png,a cat,train\nsmall.png,a dog,validation\n")
    assert main(["convert", str(table), str(out)]) == 0
    assert [entry["split"] for entry in json.loads(out.read_text())] == ["train", "val"]


def test_a_shard_is_converted_with_its_images(shard: Path, capsys: pytest.CaptureFixture[str]):
    out = shard.parent / "out.json"
    assert main(["convert", str(shard), str(out)]) == 2
    assert "add --copy-images" in capsys.readouterr().err
    assert main(["convert", str(shard), str(out), "--copy-images"]) == 0
    assert json.loads(out.read_text()) == [{"image": "out_images/000000.png", "caption": ["one \x1b[2J", "two"]}]
    copied = shard.parent / "out_images" / "000000.png"
    assert copied.read_bytes() == (shard.parent.parent / "small.png").read_bytes()
    capsys.readouterr()
    assert main(["check", str(out)]) == 0


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["check", "gone.json"], 1, "clip-data: gone.json: no such file, folder or shard."),
        (["synthetic", "x", "--count", "3"], 2, 'Invalid value "3" for --count'),
        (["synthetic", "x", "--holdout-combinations", "13"], 2, "Must be <= 12"),
        (["check"], 2, "file"),
        (["info", "gone-{0..3}.tar"], 1, "no shard at gone-0.tar"),
        (["info", "x", "--format", "xml"], 2, "--format"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_a_mistake_is_one_sentence(flags: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]):
    assert main(flags) == code
    error = capsys.readouterr().err
    assert sentence.casefold() in error.casefold()
    assert error.count("\n") == 1


def test_the_data_package_needs_no_torch():
    modules = ("preprocess", "tokenizer", "pairs", "store", "dataset", "synthetic", "convert", "formats.detect")
    imports = "; ".join(f"import clip_core.data.{name}" for name in modules)
    code = f"import sys; sys.modules['torch'] = None; {imports}; import clip_core.cli.data"
    subprocess.run([sys.executable, "-c", code], check=True)
