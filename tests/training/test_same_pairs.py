"""The same pairs are recognised wherever they are stored; any change is found and named."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from clip_core.data.dataset import Data, PairSet
from clip_core.data.pairs import Pair, Report, fingerprint, pair_hashes
from clip_core.data.store import ImageStore
from clip_core.errors import RunError
from clip_core.network import Preprocessing
from clip_core.run.paths import RunPaths
from clip_core.training.same_pairs import refuse_other_pairs, store_hashes


def pairs_in(folder: Path, count: int = 5) -> list[Pair]:
    folder.mkdir()
    pairs = []
    for number in range(count):
        image = folder / f"{number}.png"
        image.write_bytes(b"x" * (10 + number))
        pairs.append(Pair(str(image), f"caption {number}", number + 1, name=image.name))
    return pairs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    return run


def data_of(pairs: list[Pair]) -> Data:
    """As `load_data` gives it, with what is compared."""
    everything = PairSet.from_pairs(pairs)
    store = ImageStore.build([], Preprocessing(image_size=8), cache_gb=0)
    return Data(everything, everything, store, store, None, Report(pairs, []), fingerprint(pairs))


@pytest.mark.fault("data or config.json changed between stop and resume")
def test_moved_pairs_are_the_same_and_another_order_is_not(tmp_path: Path, run: Path) -> None:
    pairs = pairs_in(tmp_path / "a")
    store_hashes(run, pair_hashes(pairs))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = [pair._replace(path=str(tmp_path / "b" / pair.name)) for pair in pairs]
    refuse_other_pairs(run, "", Path("list.json"), data_of(moved))
    with pytest.raises(RunError, match="their order or number differs"):
        refuse_other_pairs(run, "", Path("list.json"), data_of(pairs[::-1]))


@pytest.mark.fault("data or config.json changed between stop and resume")
def test_what_differs_is_counted_and_the_first_is_named(tmp_path: Path, run: Path) -> None:
    pairs = pairs_in(tmp_path / "a")
    store_hashes(run, pair_hashes(pairs))
    with pytest.raises(RunError, match=r"list.json are not those that .*: 2 are missing \(first: usable pair 1\);"):
        refuse_other_pairs(run, "", Path("list.json"), data_of(pairs[2:]))
    pairs[4].image.write_bytes(b"another image")
    with pytest.raises(RunError, match=r'1 is new or changed \(first: 4.png "caption 4"\)'):
        refuse_other_pairs(run, "", Path("list.json"), data_of(pairs))


@pytest.mark.fault("data or config.json changed between stop and resume")
def test_without_the_stored_hashes_the_fingerprint_decides(tmp_path: Path, run: Path) -> None:
    pairs = pairs_in(tmp_path / "a")
    refuse_other_pairs(run, fingerprint(pairs), Path("list.json"), data_of(pairs))
    with pytest.raises(RunError, match="there are 5 usable pairs"):
        refuse_other_pairs(run, "0" * 64, Path("list.json"), data_of(pairs))


@pytest.mark.fault("a file of a run cut, emptied, zeroed, flipped in one bit, or noise")
def test_any_bit_flipped_in_the_hashes_is_refused_or_the_fingerprint_decides(
    tmp_path: Path, run: Path, record_property: Callable[[str, object], None]
) -> None:
    pairs = pairs_in(tmp_path / "a", count=2)
    data, stored = data_of(pairs), RunPaths(run).pair_hashes
    store_hashes(run, pair_hashes(pairs))
    whole = stored.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        stored.write_bytes(changed)
        with suppress(RunError):
            refuse_other_pairs(run, fingerprint(pairs), Path("list.json"), data)
    record_property("injected", -(-8 * len(whole) // 3))
