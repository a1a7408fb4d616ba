"""The same pairs are recognised wherever they are stored; any change is found and named."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from clip_core.data.pairs import Pair
from clip_core.errors import RunError
from clip_core.training.same_pairs import fingerprint, pair_hashes, refuse_other_pairs, store_hashes


def pairs_in(folder: Path, count: int = 5) -> list[Pair]:
    folder.mkdir()
    pairs = []
    for number in range(count):
        image = folder / f"{number}.png"
        image.write_bytes(b"x" * (10 + number))
        pairs.append(Pair(image, f"caption {number}", number + 1, name=image.name))
    return pairs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    return run


def test_moved_pairs_are_the_same_and_another_order_is_not(tmp_path: Path) -> None:
    pairs = pairs_in(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = [replace(pair, image=tmp_path / "b" / pair.name) for pair in pairs]
    assert fingerprint(pair_hashes(moved)) == fingerprint(pair_hashes(pairs))
    assert fingerprint(pair_hashes(pairs[::-1])) != fingerprint(pair_hashes(pairs))


def test_what_differs_is_counted_and_the_first_is_named(tmp_path: Path, run: Path) -> None:
    pairs = pairs_in(tmp_path / "a")
    hashes = pair_hashes(pairs)
    store_hashes(run, hashes)
    expected = fingerprint(hashes)
    refuse_other_pairs(run, expected, Path("list.json"), pairs)
    with pytest.raises(RunError, match=r"list.json are not those that .*: 2 are missing \(first: usable pair 1\);"):
        refuse_other_pairs(run, expected, Path("list.json"), pairs[2:])
    with pytest.raises(RunError, match="their order or number differs"):
        refuse_other_pairs(run, expected, Path("list.json"), pairs[::-1])
    pairs[4].image.write_bytes(b"another image")
    with pytest.raises(RunError, match=r'1 is new or changed \(first: 4.png "caption 4"\)'):
        refuse_other_pairs(run, expected, Path("list.json"), pairs)


def test_without_the_stored_hashes_the_difference_is_still_an_error(tmp_path: Path, run: Path) -> None:
    pairs = pairs_in(tmp_path / "a")
    with pytest.raises(RunError, match="there are 5 usable pairs"):
        refuse_other_pairs(run, "0" * 64, Path("list.json"), pairs)
