"""Features by content: computed once, kept by an interrupted run, shared by processes."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from clip_core.data.feature_cache import KEY_BYTES, FeatureCache, content_key
from tests.conftest import command_environment

KEYS = [content_key(str(number).encode()) for number in range(100)]


def rows(places: Sequence[int]) -> np.ndarray:
    return np.array([[place, place / 2, -place] for place in places], dtype=np.float32)


def test_features_are_in_the_order_of_their_keys_and_each_is_computed_once(tmp_path: Path) -> None:
    computed: list[int] = []

    def encode(places: Sequence[int]) -> np.ndarray:
        computed.extend(places)
        return rows([order[place] for place in places])

    order = [3, 1, 3, 2, 1]
    cache = FeatureCache("one", (3,), tmp_path)
    found = cache.compute([KEYS[n] for n in order], encode)
    assert found.tolist() == rows(order).tolist()
    assert computed == [0, 1, 3]
    again = FeatureCache("one", (3,), tmp_path)
    assert len(again) == 3
    assert again.compute([KEYS[2], KEYS[3]], lambda places: rows([])).tolist() == rows([2, 3]).tolist()


def test_an_interrupted_computation_keeps_what_it_computed(tmp_path: Path) -> None:
    def encode(places: Sequence[int]) -> np.ndarray:
        if places[0] >= 64:
            raise KeyboardInterrupt
        return rows(places)

    with pytest.raises(KeyboardInterrupt):
        FeatureCache("one", (3,), tmp_path).compute(KEYS, encode)
    again: list[int] = []

    def rest(places: Sequence[int]) -> np.ndarray:
        again.extend(places)
        return rows(places)

    assert FeatureCache("one", (3,), tmp_path).compute(KEYS, rest).tolist() == rows(range(100)).tolist()
    assert again == list(range(64, 100))


@pytest.mark.parametrize(
    ("name", "size"), [("features.bin", 5), ("keys.bin", 3), ("features.bin", -7), ("keys.bin", -1)]
)
def test_a_row_that_a_killed_process_left_in_part_does_not_count(tmp_path: Path, name: str, size: int) -> None:
    FeatureCache("one", (3,), tmp_path).compute(KEYS[:10], rows)
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(content + b"x" * size if size > 0 else content[:size])
    cache = FeatureCache("one", (3,), tmp_path)
    assert len(cache) == (10 if size > 0 else 9)
    assert cache.compute(KEYS[:12], rows).tolist() == rows(range(12)).tolist()
    assert (tmp_path / "keys.bin").stat().st_size == 12 * KEY_BYTES


def test_where_nothing_can_be_written_features_stay_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = FeatureCache("one", (3,), tmp_path / "file" / "folder")
    assert cache.compute(KEYS, rows).tolist() == rows(range(100)).tolist()
    assert cache.compute(KEYS[:5], lambda places: rows([])).tolist() == rows(range(5)).tolist()


def test_two_processes_that_fill_one_cache_mix_nothing_up(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from clip_core.data.feature_cache import FeatureCache, content_key\n"
        "start = int(sys.argv[2]); keys = [content_key(str(n).encode()) for n in range(start, start + 600)]\n"
        "encode = lambda places: np.array([[start + p, (start + p) / 2, -(start + p)] for p in places], np.float32)\n"
        "FeatureCache('one', (3,), Path(sys.argv[1])).compute(keys, encode)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    children = [subprocess.Popen([*command, str(start)], env=command_environment()) for start in (0, 300)]
    assert [child.wait(120) for child in children] == [0, 0]
    keys = [content_key(str(number).encode()) for number in range(900)]
    assert (
        FeatureCache("one", (3,), tmp_path).compute(keys, lambda places: rows([])).tolist() == rows(range(900)).tolist()
    )


def test_a_key_that_two_processes_wrote_moves_no_row_where_the_disk_is_full(tmp_path: Path) -> None:
    FeatureCache("one", (3,), tmp_path).compute(KEYS[:3], rows)
    for name in ("keys.bin", "features.bin"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + content[: len(content) // 3])
    cache = FeatureCache("one", (3,), tmp_path)
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()  # nothing can be written from now on
    assert cache.compute(KEYS[:6], lambda places: rows(places)).tolist() == rows(range(6)).tolist()


def test_another_encoder_or_another_shape_has_another_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = {FeatureCache(*arguments).folder for arguments in (("one", (3,)), ("two", (3,)), ("one", (4,)))}
    assert len(folders) == 3


def test_the_key_is_that_of_the_content() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert content_key(pixels) == content_key(pixels.copy()) == content_key(pixels.tobytes())
    assert content_key(pixels) != content_key(pixels.T)
