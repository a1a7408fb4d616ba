"""Streams of shards: every pair once an epoch, a state that continues exactly, and sources that fail."""

import json
import os
import pickle
import re
import shutil
import subprocess
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_core.config import streamed_pattern
from clip_core.data.formats.detect import read_data
from clip_core.data.stream import source as sources
from clip_core.data.stream.lane import Lane, Shards
from clip_core.data.stream.samples import read_samples
from clip_core.data.stream.shard_list import (
    ShardList,
    absolute_pattern,
    compare,
    counted_pairs,
    list_shards,
    of_split,
    total_bytes,
)
from clip_core.data.stream.source import Source, StoppedError, check_protocol
from clip_core.errors import DataError
from tests.pairs import check_pairs
from tests.streams import Server, png, served, shards, tar

SIZES = [7, 1, 12, 30, 4, 9, 3]


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("shards"), SIZES)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "WAITS", (0.01, 0.02, 0.04))


@pytest.fixture
def server(pattern: Path) -> Iterator[Server]:
    with served(pattern.parent) as server:
        yield server


def plan(path: Path, lanes: int = 1, buffer: int = 5, **how: Any) -> Shards:
    return Shards(list_shards(path).urls, 3, lanes, buffer, 1 << 30, **how)


def epochs_of(lane: Lane, epochs: int) -> list[list[str]]:
    """The captions that a lane gives in each of its first epochs."""
    given: list[list[str]] = [[] for _ in range(epochs)]
    while True:
        pair = lane.next()
        epoch = lane.state()["epoch"]
        if epoch >= epochs:
            lane.close()
            return given
        given[epoch].append(pair.caption)


def everything(path: Path, **how: Any) -> list[str]:
    lane = Lane(plan(path, **how), 0)
    try:
        return [lane.next().caption for _ in range(sum(SIZES))]
    finally:
        lane.close()


@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 10])
def test_every_pair_is_given_once_in_each_epoch_by_whatever_number_of_lanes(pattern: Path, lanes: int):
    shared = plan(pattern, lanes)
    assert shared.shared == (lanes > len(SIZES))
    of_lanes = [epochs_of(Lane(shared, number), 3) for number in range(lanes)]
    expected = Counter(f"thing number {number}" for number in range(sum(SIZES)))
    orders = [[caption for lane in of_lanes for caption in lane[epoch]] for epoch in range(3)]
    assert all(Counter(order) == expected for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    if 1 < lanes < 7:  # the shards of a lane change from epoch to epoch
        assert set(of_lanes[0][0]) != set(of_lanes[0][1])


@settings(max_examples=10)
@given(stops=st.lists(st.integers(0, 180), min_size=1, max_size=4), buffer=st.integers(1, 80), lanes=st.integers(1, 2))
def test_stopped_anywhere_and_several_times_a_lane_gives_the_pairs_it_would_have_given(
    pattern: Path, stops: list[int], buffer: int, lanes: int
):
    whole = Lane(plan(pattern, lanes, buffer), 0)
    expected = [whole.next() for _ in range(200)]
    whole.close()
    given, shards_now, lane = [], plan(pattern, lanes, buffer), Lane(plan(pattern, lanes, buffer), 0)
    for stop in sorted(stops):
        given += [lane.next() for _ in range(stop - len(given))]
        state = json.loads(json.dumps(lane.state()))
        lane.close()
        assert len(json.dumps(state)) < 300 + 40 * (buffer + 1)  # references, no images
        lane = Lane(replace(shards_now), 0)
        lane.restore(state)
    given += [lane.next() for _ in range(200 - len(given))]
    lane.close()
    assert [pair.caption for pair in given] == [pair.caption for pair in expected]
    assert given == expected


def test_a_small_buffer_of_bytes_still_gives_every_pair(pattern: Path):
    small = replace(plan(pattern, buffer=1000), buffer_bytes=3 * len(png(0)))
    lane = Lane(small, 0)
    captions = [lane.next().caption for _ in range(sum(SIZES))]
    assert len(lane.state()["buffer"]) <= 4
    lane.close()
    assert len(set(captions)) == sum(SIZES)


def test_a_stream_has_the_pairs_of_the_index(tmp_path: Path):
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    members = [
        ("a.jpg", png(1)), ("a.txt", b"one"), ("a.pkl", pickle.dumps(Bomb())),
        ("b.json", json.dumps({"caption": ["two", "three"], "url": "u"}).encode()), ("b.png", png(2)),
        ("2023.01.05.png", png(3)), ("2023.01.05.txt", b"four"), ("2023.01.06.png", png(4)), ("2023.01.06.txt", b"5!"),
        ("c.png", png(5)), ("c.txt", b"six"), ("c.json", b"{}"), ("d/e.png", png(6)), ("d/e.txt", b"seven"),
        ("d/f.png", png(7)), ("d/f.txt", b""), ("g.txt", b"alone"), ("h.png", png(8)), ("x" * 120 + ".png", png(9)),
        ("x" * 120 + ".txt", "acht ä".encode()), ("a.png", png(10)), ("a.txt", b"again"), ("i.cls", b"3"),
    ]  # fmt: skip
    path = tar(tmp_path / "a.tar", members)
    ignored: Counter[str] = Counter()
    with Source(str(path)) as source:
        samples = list(read_samples(source, 0, ignored))
    found = [(pair.caption, pair.image) for sample in samples for pair in sample.pairs]
    index = check_pairs(read_data(path).pairs)
    assert Counter(caption for caption, _ in found) == Counter(pair.caption for pair in index.good)
    assert dict(found)["six"] == png(5)
    assert sum(len(sample.bad) for sample in samples) == len(index.bad) == 3
    assert ignored == {".pkl": 1, ".cls": 1}
    assert not (tmp_path / "run").exists()
    ids = {pair.caption: pair.image_id for sample in samples for pair in sample.pairs}
    assert ids["two"] == ids["three"] != ids["one"]


def test_one_caption_of_an_image_an_epoch_and_the_next_one_in_the_next(tmp_path: Path):
    members = [
        item
        for number in range(6)
        for item in ((f"{number}.png", png(number)), (f"{number}.json", json.dumps({"text": ["x", "y"]}).encode()))
    ]
    lane = Lane(plan(tar(tmp_path / "0.tar", members), sample_captions=True), 0)
    first, second = epochs_of(lane, 2)
    assert len(first) == len(second) == 6
    assert Counter(first) + Counter(second) == {"x": 6, "y": 6}


# ---------------------------------------------------------------- where shards are


def test_a_server_with_ranges_one_without_and_fsspec_give_what_local_files_give(pattern: Path, server: Server):
    expected = everything(pattern)
    said: list[str] = []
    memory = fsspec.filesystem("memory")
    for path in pattern.parent.glob("*.tar"):
        memory.pipe(f"/set/{path.name}", path.read_bytes())
    for url in (f"{server.url}/{pattern.name}", f"memory://set/{pattern.name}", "memory://set/*.tar"):
        assert everything(Path(url)) == expected, url  # as a command line makes a Path of it
    server.ranges = False
    lane = Lane(plan(Path(f"{server.url}/{pattern.name}"), say=said.append), 0)
    given = [lane.next().caption for _ in range(20)]
    state = lane.state()
    lane.close()
    assert not said
    lane = Lane(plan(Path(f"{server.url}/{pattern.name}"), say=said.append), 0)
    lane.restore(state)
    assert given + [lane.next().caption for _ in range(sum(SIZES) - 20)] == expected
    lane.close()
    assert "are read and skipped" in said[0]


def test_a_shard_without_its_end_is_read_to_its_last_sample_also_from_there(tmp_path: Path):
    content = (shards(tmp_path, [2]).parent / "000.tar").read_bytes()
    (tmp_path / "000.tar").write_bytes(content[: 4 * 1024])  # two samples of a header and a block each
    with served(tmp_path) as server:
        for url in (f"{server.url}/000.tar", str(tmp_path / "000.tar")):
            with Source(url, 4 * 1024) as source:
                assert (source.size, list(read_samples(source, 0, Counter()))) == (4 * 1024, [])


def test_patterns_lists_and_what_is_no_stream(pattern: Path, server: Server, tmp_path: Path):
    folder = pattern.parent
    every = [str(folder / f"{number:03d}.tar") for number in range(7)]
    assert list_shards(pattern).urls == list_shards(folder).urls == list_shards(folder / "*.tar").urls == every
    joined = absolute_pattern(Path(f"{every[0]}::{folder}/{{003..004}}.tar::{every[0]}"))
    assert list_shards(joined).urls == [every[0], *every[3:5]]
    (tmp_path / "list.txt").write_text(f"{every[1]}\n{server.url}/{{002..003}}.tar\n")
    assert list_shards(tmp_path / "list.txt").urls == [every[1], f"{server.url}/002.tar", f"{server.url}/003.tar"]
    assert list_shards(joined).names == ["000.tar", "003.tar", "004.tar"]
    assert streamed_pattern(Path("https://host/a::s3://b/c")) == "https://host/a::s3://b/c"
    assert streamed_pattern(Path("shards/{0..9}.tar")) is streamed_pattern(Path("/a/set:/b")) is None
    assert total_bytes(list_shards(pattern)) == sum(Path(url).stat().st_size for url in every)
    assert counted_pairs(list_shards(pattern)) is None
    (folder / "sizes.json").write_text(json.dumps({Path(url).name: 10 for url in every}))
    assert counted_pairs(list_shards(Path(f"{server.url}/{pattern.name}"))) == 70
    (folder / "sizes.json").unlink()
    for path, why in (
        ("https://host/*.tar", "lists no files"), ("pipe:cat a.tar::b.tar", "would run a command"),
        (str(tmp_path / "x-*.tar"), "no shard"), ("https://host/a.tar.gz", "is compressed"),
        ("https://host/a.csv?x=1", "only .tar shards"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=why):
            list_shards(Path(path))
    for url, why in (("s3://bucket/a.tar", "pip install .*s3fs"), ("what://a/b.tar", "cannot be opened")):
        with pytest.raises(DataError, match=why):
            check_protocol(url)
    named = ShardList("", [f"s3://b/set/{name}" for name in ("train/0.tar", "1.tar", "val-0.tar", "test/0.tar?x=1")])
    assert named.names == ["train/0.tar", "1.tar", "val-0.tar", "test/0.tar"]
    assert of_split(named, "train")[0].urls == named.urls[:2]
    assert of_split(named, "val")[0].urls == named.urls[1:3]
    assert of_split(list_shards(pattern), "train") == (list_shards(pattern), 0)
    assert compare(["a", "b"], ["a", "c"]) == "1 shard missing (first: b) and 1 shard new (first: c)"


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", ["reset", "truncate", 503, 404])
def test_a_failed_connection_is_tried_again_where_it_broke(pattern: Path, server: Server, fault: int | str):
    said: list[str] = []
    server.faults = {"003.tar": [fault, fault]}
    url = Path(f"{server.url}/{pattern.name}")
    assert everything(url, say=said.append) == everything(pattern)
    assert len(said) == 2
    assert "003.tar" in said[0]
    assert "trying again in 0.01 s (1 of 3)" in said[0]
    server.faults, server.lasting = {"003.tar": [fault]}, True
    with pytest.raises(DataError, match=r"003\.tar cannot be read \(.*tried \d times\)"):
        everything(url)


def test_a_damaged_shard_is_one_sentence(tmp_path: Path):
    path = shards(tmp_path, [40])
    content = (tmp_path / "000.tar").read_bytes()
    for end in (len(content) // 2 + 100, 600):
        (tmp_path / "000.tar").write_bytes(content[:end])
        with pytest.raises(DataError, match=r"000\.tar cannot be read .*(damaged at byte|end of data)"):
            everything(path)
    (tmp_path / "000.tar").write_bytes(content[:30_000] + b"\xff" * 512 + content[30_512:])
    lane = Lane(plan(path), 0)
    with pytest.raises(DataError, match="cannot be read"):
        [lane.next() for _ in range(100)]
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    (tmp_path / "000.tar").write_bytes(content[:4096] + header.tobuf(tarfile.GNU_FORMAT) + content[4096:])
    with pytest.raises(DataError, match="cannot be read"):  # and nothing of that size is allocated
        everything(path)
    with tarfile.open(tmp_path / "000.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("1.png")
        info.pax_headers = {"GNU.sparse.size": "x"}  # where a number is read
        archive.addfile(info)
    with pytest.raises(DataError, match="cannot be read"):
        everything(path)
    with pytest.raises(DataError, match="is not a whole, uncompressed tar file"):
        read_data(path)
    tar(tmp_path / "000.tar", [("1.cls", b"3")])
    with pytest.raises(DataError, match="none of the 0 pairs"):
        everything(path)


def test_a_shard_that_has_changed_is_refused_with_the_difference(tmp_path: Path):
    path = shards(tmp_path, [20, 20])
    with served(tmp_path) as server:
        for where in (path, Path(f"{server.url}/{path.name}")):
            shards(tmp_path, [20, 20])
            lane = Lane(plan(where), 0)
            assert list(islice(iter(lane.next, None), 30))
            state, seen = lane.state(), dict(lane.shards.tags)
            lane.close()
            shards(tmp_path, [20, 20], words="other number")  # of the same size
            again = plan(where, tags=seen)
            with pytest.raises(DataError, match=r"has changed since this run read it .* then, .* now"):
                Lane(again, 0).restore(state)
    with pytest.raises(DataError, match="has changed"):
        plan(path, tags={0: (5, "content abc")}).check()


def test_a_change_where_a_shard_is_not_hashed_is_seen_by_the_time_of_writing(tmp_path: Path):
    pattern = shards(tmp_path / "data", [300])
    shard = tmp_path / "data" / "000.tar"
    first = plan(pattern)
    first.open(0, 0, threading.Event()).close()
    content, written = bytearray(shard.read_bytes()), shard.stat().st_mtime_ns
    content[150_000] ^= 1  # behind the first 64 kB and before the middle
    shard.write_bytes(content)
    os.utime(shard, ns=(written, written + 1_000_000))
    with pytest.raises(DataError, match="has changed since this run read it") as refused:
        first.check()
    (when,) = re.findall(r"touch -d (@\S+) ", str(refused.value))
    subprocess.run(["touch", "-d", when, shard], check=True)
    first.check()
    moved = Path(shutil.copytree(shard.parent, tmp_path / "moved", copy_function=shutil.copyfile))
    plan(moved / pattern.name, tags=first.tags).check()


def test_a_wait_for_a_silent_server_ends_at_once(pattern: Path, server: Server):
    server.faults = {f"{number:03d}.tar": ["stall"] for number in range(7)}
    lane = Lane(plan(Path(f"{server.url}/{pattern.name}")), 0)
    threading.Timer(0.2, lane.close).start()
    began = time.perf_counter()
    with pytest.raises(StoppedError):
        lane.next()
    assert time.perf_counter() - began < 1
