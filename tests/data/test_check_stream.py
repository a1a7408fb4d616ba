"""clip-data check of a stream: the findings of the index over the same shards, damage named, and flags honoured."""

import io
import json
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from clip_core.cli.check import Model, run_check
from clip_core.cli.data import main
from clip_core.data.check import check_data
from clip_core.data.check_stream import StreamOptions, read_stream
from clip_core.data.embedding_file import EmbeddingFile, EmbeddingModel, ImageEmbedder
from clip_core.data.findings_file import FindingsFile
from clip_core.data.formats.detect import read_data
from clip_core.data.mislabels import find_mislabels
from clip_core.data.preprocess import Pixels, load_image
from clip_core.data.stream import shard_pass
from clip_core.data.stream.lane import Lane, Shards
from clip_core.data.stream.left_out import LeftOut
from clip_core.data.stream.shard_list import list_shards, shown_url
from clip_core.network import Preprocessing
from clip_core.run.paths import RunPaths
from clip_core.run.records import FlaggedPair, Flags
from clip_core.scoring import FloatArray, l2_normalise
from tests.data.test_check import scene
from tests.streams import Members, png, served, tar

STREAMED = "{000..002}.tar"
SIZE = (160, 120)


def content(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards with copies across them, faults of several kinds, and members that are never opened."""
    folder = tmp_path_factory.mktemp("planted")
    images = {f"s{seed:02d}.png": content(scene(seed, SIZE)) for seed in range(40, 52)}
    images |= {
        "copy.png": images["s41.png"],
        "near.jpg": content(scene(42, SIZE), "JPEG"),
        "dark.png": content(scene(60, SIZE).point(lambda value: value // 6)),
        "tiny.png": content(scene(61, (20, 20))),
        "torn.png": images["s43.png"][:5000],
        "html.jpg": b"<html>not found</html>",
        "blank.png": content(Image.new("RGB", (64, 64), "grey")),
    }
    names = list(images)
    for number in range(3):
        members: Members = []
        for name in names[number::3]:
            key = name.partition(".")[0]
            caption: tuple[str, bytes] = (f"{key}.txt", f"the {key} of a place".encode())
            if name == "tiny.png":
                caption = ("tiny.json", json.dumps({"caption": ["THE S40 OF A PLACE", "", "Кот на окне"]}).encode())
            members += [(name, images[name]), caption, (f"{key}.pkl", b"cos\nsystem\n")]
        members += [(f"alone{number}.png", images["s44.png"]), (f"orphan{number}.txt", b"no image")]
        tar(folder / f"{number:03d}.tar", members)
    return folder


def report(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, Any]:
    assert main(["check", *map(str, arguments), "--json"]) == code, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def kinds(found: dict[str, Any]) -> dict[str, int]:
    return {finding["kind"]: finding["count"] for finding in found["findings"]}


def same(found: dict[str, Any]) -> str:
    """All that a report says but how the data were read."""
    left = {name: value for name, value in found.items() if name not in ("format", "why", "stream")}
    return json.dumps(left, sort_keys=True).replace(" beside it in the shard", "")


def test_a_stream_has_the_findings_of_the_index(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shard_pass, "_AT_ONCE", 2)  # many batches, which are measured in any order
    written = []
    for name, flags in (("stream", ["--stream", "--readers", "2"]), ("index", [])):
        out = tmp_path / name
        out.mkdir()
        files = [f"--{kind}={out / kind}" for kind in ("findings", "flags", "html")]
        found = report(capsys, folder / STREAMED, *flags, *files, "--workers", "3", code=1)
        flagged = [(pair.image, pair.caption) for pair in Flags.read(out / "flags").pairs]
        groups = (out / "findings").read_text().partition("\n")[2].replace(" beside it in the shard", "")
        written.append((same(found), flagged, groups, (out / "html").read_text().count("data:image/jpeg")))
    assert written[0] == written[1]
    assert kinds(found) == {
        "broken": 9, "exact_duplicates": 1, "near_duplicates": 1, "duplicate_captions": 1, "blank": 1, "dark": 1,
        "tiny": 1,
    }  # fmt: skip
    assert found["not_read"] == {".pkl": 19}


def test_damaged_shards_are_named_with_their_byte_and_the_others_are_checked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole = (folder / "000.tar").read_bytes()
    third = whole.index(b"s46.png")  # of its header
    faults = {
        "0.tar": (folder / "001.tar").read_bytes(), "1.tar": whole[: third + 700],
        "2.tar": b"<!doctype html><title>Sign in</title>",
        "3.tar": whole[:third] + b"\xff" * 512 + whole[third + 512 :],
        "4.tar": b"", "5.tar": whole[:third],
        "6.tar": whole[:third] + b"\0" * 1024 + whole[third + 1024 :],
    }  # fmt: skip
    for name, damaged in faults.items():
        (tmp_path / name).write_bytes(damaged)
    page = tmp_path / "page.html"
    found = report(capsys, tmp_path / "{0..6}.tar", "--stream", "--html", page, code=1)
    damage = {Path(entry["shard"]).name: (entry["byte"], entry["pairs"]) for entry in found["stream"][0]["damaged"]}
    assert damage == {
        "1.tar": (third + 700, 1),
        "2.tar": (0, 0),
        "3.tar": (third, 2),
        "4.tar": (0, 0),
        "6.tar": (third, 2),
    }
    assert kinds(found)["damaged_shards"] == 5
    assert any("5.tar" in note and "perhaps cut off" in note for note in found["check_notes"] + found["notes"])
    assert "unexpected end of data" in page.read_text()
    (tmp_path / "0.tar").unlink()
    assert main(["check", str(tmp_path / "2.tar"), "--stream"]) == 1
    assert "2.tar cannot be read (it is not a whole" in capsys.readouterr().err


def test_remote_shards_are_read_once_and_their_images_shown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    local = report(capsys, folder / STREAMED, "--stream", code=1)
    page = tmp_path / "page.html"
    memory = fsspec.filesystem("memory")
    for shard in folder.iterdir():
        memory.pipe_file(f"/check/{shard.name}", shard.read_bytes())
    found = report(capsys, f"memory://check/{STREAMED}", "--html", page, code=1)
    assert same(found).replace("memory://check", str(folder)) == same(local)
    shown = page.read_text().count("data:image/jpeg")
    assert shown >= 7
    with served(folder) as server:
        file = tmp_path / "findings.jsonl"
        found = report(capsys, f"{server.url}/{STREAMED}", "--html", page, "--findings", file, code=1)
        assert same(found).replace(server.url, str(folder)) == same(local)
        assert page.read_text().count("data:image/jpeg") == shown
        whole = [name for name, asked in server.asked if asked.endswith("-")]
        assert sorted(whole) == ["000.tar", "001.tar", "002.tar"]
        server.ranges = False  # nothing can be shown, and nothing is read to its place
        report(capsys, f"{server.url}/{STREAMED}", "--html", page, code=1)
        assert "unreadable" in page.read_text()
    findings = FindingsFile.open(file)
    place = [kind.kind for kind in findings.checked.findings].index("exact_duplicates")
    for image, _ in findings.group(place, 0).pairs:
        assert load_image(findings.image(image)).size == SIZE


def test_signatures_and_passwords_are_in_no_report():
    assert shown_url("https://me:secret@host/a/{0..9}.tar?sig=x") == "https://host/a/{0..9}.tar"
    assert shown_url("abfs://box@account.net/a.tar") == "abfs://box@account.net/a.tar"
    assert shown_url("file:///a/b.tar") == "/a/b.tar"


def test_a_sample_of_a_stream_is_said(folder: Path, capsys: pytest.CaptureFixture[str]):
    found = report(capsys, folder / STREAMED, "--stream", "--shards", 2, "--pairs", 6)
    assert found["stream"][0]["shards_checked"] == 2
    assert found["stream"][0]["pairs"] == 6
    note = "a sample was checked: 2 of 3 shards, spread evenly, the first 3 pairs of each"
    assert note in found["notes"]
    assert {pair["image"].partition("!")[0][-7:] for pair in found["examples"]} == {"000.tar", "002.tar"}
    assert main(["check", str(folder / STREAMED), "--shards", "2"]) == 2
    assert "--shards is of streamed shards; add --stream" in capsys.readouterr().err
    assert main(["check", str(folder / STREAMED), "--stream", "--image-root", "/"]) == 2
    assert "--image-root is of indexed data" in capsys.readouterr().err


def test_images_of_a_validation_list_that_are_in_a_stream_are_leaks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "val.png").write_bytes(content(scene(43, SIZE)))
    (tmp_path / "val.json").write_text(json.dumps([{"image": "val.png", "caption": "a view"}]))
    for val in (tmp_path / "val.json", f"file://{folder}/002.tar"):
        stream = report(capsys, folder / "{000..001}.tar", "--stream", "--val-file", val, code=1)
        index = report(capsys, folder / "{000..001}.tar", "--val-file", str(val).removeprefix("file://"), code=1)
        assert same(stream) == same(index)
        assert {"leaked", "leaked_near"} & kinds(stream).keys()


def test_a_stream_leaves_out_what_was_flagged_wherever_its_shards_are(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = tmp_path / "flags.json"
    report(capsys, folder / STREAMED, "--stream", "--flags", flags, code=1)
    flagged = Flags.read(flags)
    assert len(flagged.pairs) == 10  # broken ones and a copy
    moved = tmp_path / "moved"
    moved.mkdir()
    for shard in folder.iterdir():
        (moved / shard.name).write_bytes(shard.read_bytes())
    for pattern in (folder / STREAMED, moved / STREAMED, f"file://{moved}/{STREAMED}"):
        main(["check", str(pattern), "--stream", "--leave-out", str(flags), "--json"])
        captured = capsys.readouterr()
        found = json.loads(captured.out)
        assert "10 pairs of" in captured.err
        assert found["stream"][0]["left_out"] == 10
        assert not {"broken", "exact_duplicates"} & kinds(found).keys()
    shards = list_shards(moved / STREAMED)
    run = RunPaths(tmp_path / "run")  # which flagged a validation image that it had stored
    run.validation_images.mkdir(parents=True)
    run.stream.write_text("{}")
    stored = run.validation_images / "000000.png"
    stored.write_bytes(content(scene(45, SIZE)))
    flagged.pairs.append(FlaggedPair(image=str(stored), caption="the s45 of a place"))
    other = [FlaggedPair(image="/elsewhere/a.jpg", caption="a"), FlaggedPair(image=f"{moved}/9.tar!/0+1/a", caption="")]
    left_out = LeftOut.of(Flags(pairs=[*flagged.pairs, *other]), shards)
    assert (left_out.named, left_out.others) == (11, 2)
    given = []
    lane = Lane(Shards(shards.urls, 0, 1, 5, 1 << 30, left_out=left_out), 0)
    while lane.state()["epoch"] == 0:
        given.append(lane.next().caption)
    lane.close()
    assert lane.left_out >= 11
    assert "the s45 of a place" not in given
    assert sorted(given[:-1]) == sorted(
        pair.caption for pair in read_stream(moved / STREAMED, "train", StreamOptions(), flagged).pairs
    )


def test_a_check_that_waits_for_a_server_ends_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with served(folder) as server:
        server.faults, server.lasting = {f"{n:03d}.tar": ["stall"] for n in range(3)}, True
        timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt, match="about 0% of the stream, 0 images, checked; nothing is reported"):
            read_stream(Path(f"{server.url}/{STREAMED}"), "train", StreamOptions())
        assert time.monotonic() - began < 1.5


class ByColour:
    """The image of pair N is of a colour that says N, as `png` makes it, and its caption ends with N."""

    def encode_pixels(self, pixels: Pixels) -> FloatArray:
        return self._embed([int(image[0, 0, 0]) + 256 * int(image[0, 0, 1]) for image in pixels], 1)

    def encode_images(self, images: Sequence[Path]) -> FloatArray:
        return self.encode_pixels(np.stack([np.asarray(load_image(image)) for image in images]))

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return self._embed([int(text.split()[-1]) for text in texts], 2)

    def _embed(self, numbers: list[int], side: int) -> FloatArray:
        of_pair, noise = ([np.random.default_rng(seed).normal(size=24) for seed in seeds]
                          for seeds in (numbers, [[number, side] for number in numbers]))  # fmt: skip
        return l2_normalise(np.array(of_pair, dtype=np.float32) + 0.5 * np.array(noise, dtype=np.float32))


def test_mislabelled_pairs_are_found_though_each_image_is_read_once(tmp_path: Path):
    names = list(range(300))
    for wrong in range(0, 300, 15):
        names[wrong], names[wrong + 1] = names[wrong + 1], names[wrong]
    for shard in range(3):
        rows = range(100 * shard, 100 * shard + 100)
        tar(
            tmp_path / f"{shard:03d}.tar",
            [part for n in rows for part in ((f"{n}.png", png(n)), (f"{n}.txt", f"thing {names[n]}".encode()))],
        )
    towers = ByColour()
    model = EmbeddingModel(ImageEmbedder(Preprocessing(image_size=16), towers.encode_pixels), EmbeddingFile())
    with served(tmp_path) as server:
        reading = read_stream(Path(f"{server.url}/{STREAMED}"), "train", StreamOptions(), model=model)
    streamed = find_mislabels(check_data(reading.pairs, measured=reading.measured), towers)
    indexed = find_mislabels(check_data(read_data(tmp_path / STREAMED).pairs), towers)
    assert streamed is not None
    assert indexed is not None
    assert sorted(streamed.rows) == sorted(indexed.rows)
    planted = {row for row, name in enumerate(names) if row != name}
    assert len(planted & set(streamed.rows.tolist())) > 30


def test_without_room_for_embeddings_the_rest_is_checked_and_this_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    members = [part for n in range(6) for part in ((f"{n}.png", png(n)), (f"{n}.txt", f"thing {n}".encode()))]
    tar(tmp_path / "000.tar", members)
    towers: Any = ByColour()
    embedding = EmbeddingModel(ImageEmbedder(Preprocessing(image_size=16), towers.encode_pixels), EmbeddingFile())
    with Path("/dev/full").open("r+b", buffering=0) as full:
        embedding.file._file = full
        reading = read_stream(tmp_path / "000.tar", "train", StreamOptions(), model=embedding)
    assert len(reading.pairs) == 6
    model = Model(tmp_path, towers, embedding)
    code = run_check(reading, None, batch_size=4, context_length=None, workers=1, as_json=False, files={}, model=model)
    out = capsys.readouterr().out
    assert code == 1
    assert "6 usable pairs with 6 images" in out
    assert "mislabelled pairs were not looked for: after 0 images there was no room for embeddings in" in out
    assert "(No space left on device); set TMPDIR to a folder with 48 bytes for each image" in out
