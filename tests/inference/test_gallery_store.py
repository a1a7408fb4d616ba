"""A large gallery on disk: rows that come and go, their codes, and what is left of both when files are damaged."""

from pathlib import Path

import numpy as np
import pytest

from clip_core.inference import gallery_store
from clip_core.inference.gallery_store import Entry, FolderStore
from clip_core.scoring import FloatArray, l2_normalise

D = 16
ROWS = l2_normalise(np.random.default_rng(0).standard_normal((7000, D)).astype(np.float32))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Codes from 1,000 rows on."""
    monkeypatch.setattr(gallery_store, "FEWEST", 1000)
    return tmp_path / "index"


def put(store: FolderStore, low: int, high: int, *, gone: range = range(0)) -> None:
    with store.writing(lambda: None):
        store.put([Entry(f"/{row}", row, row) for row in range(low, high)], ROWS[low:high])
        store.remove([f"/{row}" for row in gone])
        store.finish()


def check(folder: Path, rows: range | list[int], *, coded: int) -> None:
    """A store that was opened anew finds what the products of these rows say."""
    store = FolderStore(folder, "model", D)
    assert (0 if store._codes is None else len(store._codes)) == coded
    queries: FloatArray = ROWS[[3, 4500, 6999]]
    kept = np.array(rows)
    best = kept[np.argsort(-(queries @ ROWS[kept].T), axis=1)[:, :8]]
    assert [[int(hit.path.name) for hit in hits] for hits in store.search(queries, 8)] == best.tolist()


def test_rows_come_and_go_and_codes_follow(folder: Path) -> None:
    store = FolderStore(folder, "model", D)
    put(store, 0, 5000)
    check(folder, range(5000), coded=5000)
    put(store, 5000, 5900)  # compared in float32
    check(folder, range(5900), coded=5000)
    put(store, 5900, 7000)
    check(folder, range(7000), coded=7000)
    put(store, 0, 0, gone=range(3, 1000))  # few: they stay in the file
    check(folder, [*range(3), *range(1000, 7000)], coded=7000)
    assert next(folder.glob("*.f32")).stat().st_size == 7000 * D * 4
    put(store, 0, 0, gone=range(1000, 2500))
    check(folder, [*range(3), *range(2500, 7000)], coded=4503)
    assert next(folder.glob("*.f32")).stat().st_size == 4503 * D * 4
    assert len(list(folder.iterdir())) == 5, "nothing is left of the files before"


@pytest.mark.parametrize(("suffix", "kept"), [("npy", 0), ("npz", 0), ("npz", 900)])
@pytest.mark.fault("damaged entry of a cache or a gallery")
def test_damaged_codes_are_not_used_and_made_again(folder: Path, suffix: str, kept: int) -> None:
    put(FolderStore(folder, "model", D), 0, 3000)
    path = next(folder.glob(f"*.{suffix}"))
    path.write_bytes(path.read_bytes()[:kept] + b"damaged")
    check(folder, range(3000), coded=0)
    store = FolderStore(folder, "model", D)
    assert store.unfinished
    put(store, 0, 0)
    check(folder, range(3000), coded=3000)


def test_without_room_for_codes_they_are_made_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(folder, "model", D)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gallery_store.os, "posix_fallocate", full, raising=False)
    put(store, 0, 3000)
    assert store._codes is not None
    assert len(store._codes) == 3000
    check(folder, range(3000), coded=0)
