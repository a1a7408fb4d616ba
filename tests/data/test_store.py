"""The image store: in memory or on demand, the same images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.data.preprocess import load_image, resize_and_crop
from clip_core.data.store import ImageStore
from clip_core.errors import ImageError
from clip_core.network import Preprocessing

SIZE = 16
SQUARE = Preprocessing(image_size=SIZE)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty images of many shapes; the fourth is missing and the last one damaged."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        pixels = rng.integers(0, 256, (10 + number, 50 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    paths[3].unlink()
    paths[-1].write_bytes(paths[-1].read_bytes()[:200])
    return paths


@pytest.fixture(params=[1.0, 0.0], ids=["cached", "on demand"])
def store(request: pytest.FixtureRequest, images: list[Path]) -> ImageStore:
    return ImageStore.build(images, SQUARE, cache_gb=request.param, workers=3)


def test_images_come_in_the_order_asked_for_with_repeats(store: ImageStore, images: list[Path]):
    rows = np.array([7, 0, 38, 7, 20])
    expected = np.stack([resize_and_crop(load_image(images[row]), SQUARE) for row in rows])
    np.testing.assert_array_equal(store.get(rows), expected)


def test_what_is_returned_may_be_written_to(store: ImageStore):
    store.get(np.array([0]))[:] = 0
    assert store.get(np.array([0])).any()


def test_bad_images_are_known_before_any_is_asked_for_and_read_as_black(store: ImageStore):
    assert set(store.failures) == {3, 39}
    assert "no image at" in store.failures[3]
    assert "39.png" in store.failures[39]
    assert not store.get(np.array([3, 39])).any()


def test_a_subset_has_its_own_rows(store: ImageStore, images: list[Path]):
    subset = store.subset(np.array([5, 3, 9])).subset(np.array([2, 1, 0]))
    assert subset.paths == [images[9], images[3], images[5]]
    assert set(subset.failures) == {1}
    np.testing.assert_array_equal(subset.get(np.arange(3)), store.get(np.array([9, 3, 5])))


def test_no_rows_and_no_images_are_empty(store: ImageStore):
    assert store.get(np.array([], dtype=np.int64)).shape == (0, SIZE, SIZE, 3)
    assert len(ImageStore.build([], SQUARE)) == 0


def test_the_cache_is_used_only_where_everything_fits(images: list[Path]):
    need = len(images) * SIZE * SIZE * 3 / 1e9
    assert ImageStore.build(images, SQUARE, cache_gb=need * 1.01).cached
    assert not ImageStore.build(images, SQUARE, cache_gb=need * 0.99).cached


def test_an_image_that_vanishes_later_is_an_error_by_name(tmp_path: Path):
    path = tmp_path / "fleeting.png"
    Image.new("RGB", (8, 8)).save(path)
    store = ImageStore.build([path], SQUARE, cache_gb=0)
    path.unlink()
    with pytest.raises(ImageError, match=r"fleeting\.png"):
        store.get(np.array([0]))
