"""Decoded images on disk: used again, made again when anything changed or broke, bounded, and safe to share."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.data.decode_cache import DecodeCache, identity
from clip_core.data.preprocess import Pixels
from clip_core.data.store import EXACT, Decoder, ImageStore
from clip_core.files import cache_folder
from clip_core.network import Preprocessing

SQUARE = Preprocessing(image_size=16)
OLD = 10_000.0  # seconds


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder() / "images"


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Forty images; the fourth is missing and the last one damaged."""
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{number}.png" for number in range(40)]
    rng = np.random.default_rng(0)
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    paths[3].unlink()
    paths[-1].write_bytes(paths[-1].read_bytes()[:200])
    return paths


class Counting:
    """The exact decoder, and which images it decoded."""

    def __init__(self) -> None:
        self.decoded: list[Path] = []
        self.decoder = Decoder(EXACT.name, self._decode)

    def _decode(self, path: Path, preprocessing: Preprocessing) -> Pixels:
        self.decoded.append(path)
        return EXACT.decode(path, preprocessing)


def build(paths: list[Path], preprocessing: Preprocessing = SQUARE, cache_gb: float = 1.0) -> tuple[ImageStore, int]:
    """A store, and how many images were decoded for it."""
    counting = Counting()
    store = ImageStore.build(paths, preprocessing, cache_gb=cache_gb, workers=2, decoder=counting.decoder)
    return store, len(counting.decoded)


def content(store: ImageStore) -> Pixels:
    return store.get(np.arange(len(store)))


def only_entry(cache: Path) -> tuple[Path, Path]:
    """The pixels and the record of the one entry."""
    record, pixels = sorted(cache.iterdir())
    assert (record.suffix, pixels.suffix) == (".json", ".npy")
    return pixels, record


def test_a_second_run_decodes_nothing_but_the_bad_images_and_reports_them_the_same(images: list[Path]):
    first, decoded = build(images)
    second, again = build(images)
    assert (decoded, again) == (40, 2)
    assert second.cached
    assert first.failures == second.failures
    assert set(second.failures) == {3, 39}
    np.testing.assert_array_equal(content(first), content(second))
    in_memory = np.stack([EXACT.decode(path, SQUARE) for path in images[:3]])
    np.testing.assert_array_equal(content(second)[:3], in_memory)


def test_a_change_of_any_image_or_of_how_it_is_prepared_is_another_file(images: list[Path], cache: Path):
    build(images)
    os.utime(images[0], ns=(1, 1))
    assert build(images)[1] == 40
    assert build(images, Preprocessing(image_size=16, resize_mode="squash"))[1] == 40
    assert build(images[::-1])[1] == 40
    shutil.copy(images[0], images[3])  # the missing one comes back
    store, decoded = build(images)
    assert decoded == 40
    assert set(store.failures) == {39}
    assert len(list(cache.glob("*.npy"))) == len(list(cache.glob("*.json"))) == 5


def test_another_image_of_the_same_size_and_time_is_not_taken_for_the_one_before(images: list[Path]):
    before = images[0].stat()
    build(images)
    Image.new("RGB", (20, 24), "red").save(images[0])  # compresses better than what was there
    images[0].write_bytes(images[0].read_bytes().ljust(before.st_size, b"\0"))
    os.utime(images[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    after = images[0].stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    store, decoded = build(images)
    assert decoded == 40
    np.testing.assert_array_equal(content(store)[0], EXACT.decode(images[0], SQUARE))


def test_an_image_that_could_not_be_decoded_and_now_can_be_is_decoded_and_kept(images: list[Path]):
    well = False

    def decode(path: Path, preprocessing: Preprocessing) -> Pixels:
        return EXACT.decode(images[0] if path == images[39] and well else path, preprocessing)

    def failures() -> set[int]:
        return set(ImageStore.build(images, SQUARE, decoder=Decoder("fickle", decode)).failures)

    assert failures() == {3, 39}
    well = True
    assert failures() == {3}
    well = False
    assert failures() == {3}


@pytest.mark.parametrize(
    "damage", ["cut", "longer", "empty", "garbage", "shape", "failed rows", "no record", "record cut"]
)
@pytest.mark.fault("damaged entry of a cache or a gallery")
def test_a_damaged_entry_is_made_again(images: list[Path], cache: Path, damage: str):
    wanted = content(build(images)[0])
    pixels, record = only_entry(cache)
    whole, said = pixels.read_bytes(), record.read_text()
    broken = {
        "cut": (whole[:-1000], said),
        "longer": (whole + b"\0", said),
        "empty": (b"", said),
        "garbage": (os.urandom(len(whole)), said),
        "shape": (whole.replace(b"(40, 16, 16, 3)", b"(20, 32, 16, 3)"), said),
        "failed rows": (whole, said.replace("39", "38")),
        "no record": (whole, None),
        "record cut": (whole, said[:-20]),
    }[damage]
    assert broken != (whole, said)
    pixels.write_bytes(broken[0])
    if broken[1] is None:
        record.unlink()
    else:
        record.write_text(broken[1])
    store, decoded = build(images)
    assert decoded == 40
    np.testing.assert_array_equal(content(store), wanted)
    pixels, record = only_entry(cache)
    assert (pixels.read_bytes(), record.read_text()) == (whole, said)


def test_the_longest_unused_go_first_and_those_of_this_minute_stay(tmp_path: Path, cache: Path):
    cache.mkdir(parents=True)
    for name, age in (("a", 3 * OLD), ("b", 2 * OLD), ("c", OLD), ("d", 0)):
        path = cache / f"{name}.npy"
        path.write_bytes(b"x" * 1000)
        os.utime(path, (time.time() - age,) * 2)
    (cache / "dead.tmp").write_bytes(b"x")
    os.utime(cache / "dead.tmp", (time.time() - 100 * OLD,) * 2)
    (cache / "killed.tmp").write_bytes(b"x")
    busy = DecodeCache(cache, 1e9).create("busy", (1, 10, 10, 3))
    pending = DecodeCache(cache, 3500).create("new", (1, 10, 10, 3))
    assert busy is not None
    assert pending is not None
    with busy:
        with pending:
            pass
        (unfinished,) = cache.glob("*.tmp")
        assert unfinished.name.startswith("busy.")
    assert sorted(path.name for path in cache.iterdir()) == ["b.npy", "c.npy", "d.npy"]
    assert DecodeCache(cache, 100).create("new", (1, 10, 10, 3)) is not None
    assert {path.name for path in cache.glob("*.npy")} == {"d.npy"}


def test_a_use_makes_a_file_young_again(images: list[Path], cache: Path):
    build(images)
    _, record = only_entry(cache)
    os.utime(record, (1, 1))
    build(images)
    assert time.time() - record.stat().st_mtime < OLD


def test_what_does_not_fit_or_is_not_wanted_leaves_nothing_behind(images: list[Path], cache: Path):
    assert not build(images, cache_gb=0)[0].cached
    assert not build(images, cache_gb=40 * 16 * 16 * 3 / 1e9 * 0.99)[0].cached
    assert not cache.exists()


@pytest.mark.fault("full disk, file-size limit or read-only disk")
def test_a_cache_that_cannot_be_written_costs_the_keeping_not_the_run(images: list[Path], cache: Path):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"a file where the folder should be")
    store, decoded = build(images)
    assert decoded == 40
    assert store.cached
    assert set(store.failures) == {3, 39}
    assert content(store)[0].any()


@pytest.mark.fault("full disk, file-size limit or read-only disk")
def test_a_disk_that_fills_up_while_writing_costs_the_keeping_not_the_run(images: list[Path], cache: Path):
    code = f"""
import resource, signal, sys
import numpy as np
from pathlib import Path
from clip_core.network import Preprocessing
from clip_core.data.store import ImageStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
store = ImageStore.build([Path(p) for p in {[str(p) for p in images]!r}], Preprocessing(image_size=16))
assert sorted(store.failures) == [3, 39], store.failures
assert store.cached and store.get(np.arange(40))[0].any()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list(cache.iterdir()) == []


def test_a_file_that_is_removed_while_it_is_used_stays_readable(images: list[Path], cache: Path):
    store = build(images)[0]
    wanted = content(store)
    only_entry(cache)[0].unlink()
    np.testing.assert_array_equal(content(store), wanted)


def _build_in_process(paths: list[Path], answers: "multiprocessing.Queue[bytes]") -> None:
    answers.put(content(build(paths)[0]).tobytes())


def test_processes_that_build_the_same_at_once_agree_and_leave_one_whole_file(images: list[Path], cache: Path):
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[bytes] = context.Queue()
    processes = [context.Process(target=_build_in_process, args=(images, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    found = {answers.get(timeout=120) for _ in processes}
    for process in processes:
        process.join()
    assert found == {content(build(images)[0]).tobytes()}
    assert build(images)[1] == 2
    only_entry(cache)


def test_no_images_and_only_bad_ones_are_kept_too(images: list[Path]):
    assert build([])[1] == 0
    store, _ = build([images[3]])
    assert build([images[3]])[0].failures == store.failures != {}


def test_the_key_knows_missing_images_and_odd_names(tmp_path: Path):
    odd = tmp_path / os.fsdecode(b"caf\xe9\n.png")
    missing = identity([odd], SQUARE, "x")
    odd.write_bytes(b"1")
    assert len({missing, identity([odd], SQUARE, "x"), identity([odd], SQUARE, "y"), identity([], SQUARE, "x")}) == 4


# ---------------------------------------------------------------- interrupted


def interrupted_build(images: list[Path], after: int) -> str:
    """Build a store and interrupt it after so many images; returns what the interrupt says."""

    def progress(done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as error:
        ImageStore.build(images, SQUARE, workers=1, progress=progress)
    return str(error.value)


def test_an_interrupted_build_is_continued_and_ends_as_if_it_had_not_been(images: list[Path], cache: Path):
    many = images * 6  # more than are decoded ahead
    wanted = content(ImageStore.build(many, SQUARE, cache_gb=0))
    said = interrupted_build(many, after=16)
    kept = int(said.split()[0])
    assert 16 <= kept < len(many)
    assert said == f"{kept} of {len(many)} images decoded and kept"
    assert sorted(path.name.partition(".")[2] for path in cache.iterdir()) == ["part.json", "part.npy"]
    bad = {row + 40 * copy for row in (3, 39) for copy in range(6)}
    store, decoded = build(many)
    assert decoded <= len(many) - kept + len(bad)  # a bad one among the kept ones is tried again, for its reason
    assert set(store.failures) == bad
    np.testing.assert_array_equal(content(store), wanted)
    only_entry(cache)


def test_an_interrupted_build_can_be_interrupted_again(images: list[Path], cache: Path):
    many = images * 6  # more than are decoded ahead
    first = int(interrupted_build(many, after=1).split()[0])
    second = int(interrupted_build(many, after=first + 1).split()[0])
    assert 16 <= first < second
    assert set(build(many)[0].failures) == {row + 40 * copy for row in (3, 39) for copy in range(6)}


@pytest.mark.parametrize("damage", ["pixels", "record", "done"])
@pytest.mark.fault("damaged entry of a cache or a gallery")
def test_a_damaged_part_is_not_continued(images: list[Path], cache: Path, damage: str):
    interrupted_build(images, after=16)
    (pixels,), (record,) = cache.glob("*.part.npy"), cache.glob("*.part.json")
    if damage == "pixels":
        pixels.write_bytes(b"")
    else:
        record.write_text(record.read_text().replace('"done": "', '"done": "f') if damage == "done" else "{")
    store, decoded = build(images)
    assert decoded == 40
    np.testing.assert_array_equal(content(store)[0], EXACT.decode(images[0], SQUARE))


def test_only_one_process_continues_what_was_kept(images: list[Path], cache: Path):
    interrupted_build(images, after=16)
    shape = (40, 16, 16, 3)
    key = identity(images, SQUARE, EXACT.name)
    pending = [DecodeCache(cache, 1e9).create(key, shape) for _ in range(2)]
    assert [bool(one and one.done.any()) for one in pending] == [True, False]
    for one in pending:
        assert one is not None
        with one:
            pass


@pytest.mark.fault("full disk, file-size limit or read-only disk")
def test_an_interrupt_on_a_full_disk_says_that_nothing_is_kept(images: list[Path], cache: Path):
    code = f"""
import resource, signal
from pathlib import Path
from clip_core.network import Preprocessing
from clip_core.data.store import ImageStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300000, 300000))
def progress(done, total):
    if done >= 16:
        raise KeyboardInterrupt
try:
    ImageStore.build([Path({str(images[0])!r})] * 400, Preprocessing(image_size=16), workers=1, progress=progress)
except KeyboardInterrupt as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "images decoded, not kept (File too large)" in done.stdout
    assert list(cache.iterdir()) == []
