"""clip-data check on sets with planted faults: what is found and flagged, and what a hostile caption cannot do."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from clip_core.cli.data import main
from clip_core.config import DataConfig
from clip_core.data.check_captions import false_negatives, script_of
from clip_core.data.dataset import load_data
from clip_core.data.findings_file import FindingsFile
from clip_core.data.near_duplicates import groups, hamming, near_pairs
from clip_core.data.preprocess import load_image, load_reduced
from clip_core.errors import ImageError
from clip_core.network import Preprocessing

HOSTILE = "<script>alert(1)</script> \x1b[31m <img src=x onerror=alert(1)>"


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A smooth random image with some fine texture: no two seeds are alike."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = random.integers(-20, 21, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(coarse, dtype=np.int64) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.json and val.json: 12 scenes, copies of several kinds, and images of every fault."""
    folder = tmp_path_factory.mktemp("planted")
    images = {f"scene{seed}.png": scene(seed) for seed in range(12)}
    images |= {
        "resized.png": scene(1).resize((160, 120)),
        "dark.png": scene(20).point(lambda value: value // 6),
        "blurred.png": scene(21).filter(ImageFilter.GaussianBlur(6)),
        "blank.png": Image.new("RGB", (64, 64), "grey"),
        "blank2.png": Image.new("RGB", (64, 64), (129, 128, 128)),
        "tiny.png": scene(22, (20, 20)),
        "narrow.png": scene(23, (400, 60)),
        "val.png": scene(24),
    }
    for name, image in images.items():
        image.save(folder / name)
    scene(2).save(folder / "recompressed.jpg", quality=50)
    scene(24).save(folder / "val_near.jpg", quality=60)
    (folder / "copy.png").write_bytes((folder / "scene3.png").read_bytes())
    (folder / "val_copy.png").write_bytes((folder / "val.png").read_bytes())
    (folder / "torn.png").write_bytes((folder / "scene4.png").read_bytes()[:5000])
    names = sorted(path.name for path in folder.iterdir() if path.name != "val.png")
    train = [{"image": name, "caption": f"the {name.rpartition('.')[0]} of a place"} for name in names]
    train += [{"image": "scene5.png", "caption": HOSTILE}, {"image": "scene6.png", "caption": "Кот на окне"}]
    val = [
        {"image": "val.png", "caption": "a view that validates"},
        {"image": "scene7.png", "caption": "The DARK of a  place"},
    ]
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "val.json").write_text(json.dumps(val))
    return folder


@pytest.fixture(scope="module")
def written(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The report, the page and the flags of one check."""
    out = tmp_path_factory.mktemp("out")
    given = ["check", str(planted / "train.json"), "--val-file", str(planted / "val.json"), "--batch-size", "8"]
    files = ["--json-file", str(out / "a.json"), "--html", str(out / "a.html"), "--flags", str(out / "flags.json")]
    assert main([*given, *files, "--workers", "2"]) == 0
    return json.loads((out / "a.json").read_text()), (out / "a.html").read_text(), out / "flags.json"


def found(report: dict[str, Any], kind: str) -> tuple[int, list[set[str]]]:
    """How many of a kind, and the names of the images of each example."""
    finding = next((finding for finding in report["findings"] if finding["kind"] == kind), None)
    if finding is None:
        return 0, []
    return finding["count"], [{Path(image).name for image in example["images"]} for example in finding["examples"]]


def test_every_planted_fault_is_found_and_nothing_else(written: tuple[dict[str, Any], str, Path]):
    report = written[0]
    assert found(report, "exact_duplicates") == (
        2,
        [{"copy.png", "scene3.png"}, {"val.png", "val_copy.png"}],
    )
    near = found(report, "near_duplicates")
    assert near[0] == 3
    assert [{"scene1.png", "resized.png"} in near[1], {"scene2.png", "recompressed.jpg"} in near[1]] == [True, True]
    for kind in ("dark", "blurred", "tiny"):
        assert found(report, kind) == (1, [{f"{kind}.png"}])
    assert found(report, "odd_aspect") == (1, [{"narrow.png"}])
    assert found(report, "blank") == (2, [{"blank.png"}, {"blank2.png"}])
    assert found(report, "broken")[0] == 1
    assert report["scripts"]["Cyrillic"] == 1


def test_leaked_images_and_captions_are_found(written: tuple[dict[str, Any], str, Path]):
    report = written[0]
    assert found(report, "leaked")[0] == 2  # the copy, and scene7.png, which both lists name
    assert found(report, "leaked_near") == (1, [{"val.png", "val_copy.png", "val_near.jpg"}])
    assert found(report, "shared_captions") == (1, [{"dark.png"}])
    assert any("scene7" in note or "both training and validation" in note for note in report["check_notes"])


def test_flags_leave_out_copies_and_leaks_of_training_and_keep_one_of_each(
    planted: Path, written: tuple[dict[str, Any], str, Path]
):
    flagged = {Path(pair["image"]).name for pair in json.loads(written[2].read_text())["pairs"]}
    assert flagged & {"scene3.png", "copy.png"} in ({"scene3.png"}, {"copy.png"})
    assert flagged - {"scene3.png", "copy.png"} == {"val_copy.png", "torn.png"}
    config = DataConfig(
        data_file=planted / "train.json", val_file=planted / "val.json", leave_out=written[2], cache_gb=0, workers=1
    )
    data = load_data(config, Preprocessing(image_size=16), 0, lambda line: None)
    assert not data.report.bad
    assert flagged.isdisjoint({path.name for path in (*data.train.images, *data.val.images)})
    assert len(data.val) == 2


def test_check_honours_leave_out_itself(
    planted: Path, written: tuple[dict[str, Any], str, Path], capsys: pytest.CaptureFixture[str]
):
    assert main(["check", str(planted / "train.json"), "--leave-out", str(written[2]), "--json"]) == 0
    captured = capsys.readouterr()
    assert found(json.loads(captured.out), "exact_duplicates")[0] == 0
    assert f"3 pairs of {planted / 'train.json'} left out" in captured.err


def test_a_hostile_caption_is_text_on_the_page_and_in_the_terminal(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = ["scene1.png", "scene2.png", "tiny.png"]
    (planted / "hostile.json").write_text(json.dumps([{"image": name, "caption": HOSTILE} for name in names]))
    assert main(["check", str(planted / "hostile.json"), "--html", str(tmp_path / "page.html")]) == 0
    page, out = (tmp_path / "page.html").read_text(), capsys.readouterr().out
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "\x1b" not in page + out
    assert page.count("data:image/jpeg;base64,") >= 2


def test_a_file_that_cannot_be_written_is_said_before_anything_is_read(tmp_path: Path, capsys: Any):
    assert main(["check", "gone.json", "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 80), st.integers(1, 5))
def test_near_pairs_are_those_of_brute_force(seed: int, count: int, radius: int):
    random = np.random.default_rng(seed)
    centres = random.integers(0, 2**64, max(count // 6, 1), dtype=np.uint64)
    hashes = centres[random.integers(0, len(centres), count)]
    for _ in range(4):  # some bits changed, often around the radius
        hashes = hashes ^ (np.uint64(1) << random.integers(0, 64, count, dtype=np.uint64))
    first, second = np.triu_indices(count, 1)
    expected = [bin(int(a) ^ int(b)).count("1") <= radius for a, b in zip(hashes[first], hashes[second], strict=True)]
    result = near_pairs(hashes, radius)
    assert result.complete
    assert set(map(tuple, result.pairs.tolist())) == {
        (int(a), int(b)) for a, b, near in zip(first, second, expected, strict=True) if near
    }
    assert [int(bits) <= radius for bits in hamming(hashes[first], hashes[second])] == expected


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_groups_are_the_connected_components(pairs: list[tuple[int, int]]):
    expected = list(range(20))
    for _ in range(20):
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert groups(20, np.array(pairs, dtype=np.int64).reshape(-1, 2)).tolist() == expected


def test_false_negatives_are_those_of_batches_that_are_drawn():
    random = np.random.default_rng(0)
    images, captions = random.integers(0, 40, 60), random.integers(0, 25, 60)
    couples, affected = [], []
    for _ in range(4000):
        drawn = random.permutation(60)[:12]
        match = (images[drawn][:, None] == images[drawn]) | (captions[drawn][:, None] == captions[drawn])
        np.fill_diagonal(match, False)
        couples.append(match.sum() / 2)
        affected.append(match.any(axis=1).mean())
    counted = false_negatives(images, captions, 12)
    assert counted["matching_pairs"] == pytest.approx(np.mean(couples), rel=0.03)
    assert counted["affected"] == pytest.approx(np.mean(affected), rel=0.03)


def test_scripts_are_those_of_most_letters():
    assert [script_of(text) for text in ("a cat", "Кот a", "猫が", "2 + 2", "🙂", "café")] == [
        "Latin", "Cyrillic", script_of("猫が"), "no letters", "no letters", "Latin",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_reduced_image_is_refused_wherever_the_whole_one_is(kind: str, tmp_path: Path):
    whole = io.BytesIO()
    scene(0, (900, 700)).save(whole, kind)
    path = tmp_path / "image"
    for size in (len(whole.getvalue()), len(whole.getvalue()) * 2 // 3, 30, 0):
        path.write_bytes(whole.getvalue()[:size])
        problems = []
        for load in (load_image, lambda path: load_reduced(path, 100, lambda content: None)):
            try:
                load(path)
                problems.append("")
            except ImageError as error:
                problems.append(str(error))
        assert problems[0] == problems[1]


def test_a_reduced_jpeg_keeps_its_upright_size(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(0, (900, 700)).save(tmp_path / "turned.jpg", exif=exif)
    image, size = load_reduced(tmp_path / "turned.jpg", 100, lambda content: None)
    assert size == (700, 900)
    assert image.height > image.width >= 100
    assert image.height < 900


def test_every_pair_with_a_finding_is_listed_with_those_that_stay_first(planted: Path, tmp_path: Path) -> None:
    file, train = tmp_path / "findings.jsonl", planted / "train.json"
    assert main(["check", str(train), "--val-file", str(planted / "val.json"), "--findings", str(file)]) == 0
    found = FindingsFile.open(file)
    listed = {
        kind.kind: [found.group(k, n) for n in range(len(found.lines[k]))]
        for k, kind in enumerate(found.checked.findings)
    }
    names = {
        kind: [[Path(image).name for image, _ in group.pairs] for group in groups] for kind, groups in listed.items()
    }
    assert names["exact_duplicates"] == [["copy.png", "scene3.png"], ["val_copy.png", "val.png"]]
    assert names["leaked"] == [["scene7.png", "scene7.png"], ["val.png", "val_copy.png"]], "validation images stay"
    assert [group.keep for group in listed["leaked"]] == [2, 1], "a file of both lists cannot be left out of one"
    assert [group.keep for group in listed["exact_duplicates"]] == [1, 1]
    assert names["broken"] == [["torn.png"]]
    assert listed["broken"][0].keep == 0
    assert names["tiny"] == [["tiny.png"]]
