"""The calls of a gallery on a real LanceDB database."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.errors import DataError
from clip_core.inference.clip import CLIPInference
from clip_core.inference.gallery_engine import EngineStore
from clip_core.inference.gallery_store import Entry
from clip_core.scoring import l2_normalise
from tests.models import images_of


@pytest.fixture(scope="module")
def clip(tiny_bundle: Path) -> CLIPInference:
    return CLIPInference(tiny_bundle)


def test_a_gallery_in_the_engine_answers_as_one_in_a_folder_does(
    clip: CLIPInference, tiny_run: Path, tmp_path: Path
) -> None:
    folder, address = tmp_path / "images", str(tmp_path / "database")
    folder.mkdir()
    for number, path in enumerate(images_of(tiny_run)[:6]):
        shutil.copy(path, folder / f"it's {number}.png")
    (folder / "broken.png").write_bytes(b"no image")

    def check(embedded: int) -> None:
        gallery, local = clip.gallery(folder, engine=address), clip.gallery(folder)
        assert gallery.embedded == embedded
        assert (gallery.paths, gallery.failures) == (local.paths, local.failures)
        np.testing.assert_allclose(gallery.embeddings, local.embeddings, atol=1e-6)
        for queries in (["a red circle", folder / "it's 2.png", "a blue square"], "a red circle"):
            for ours, theirs in zip(gallery.search(queries, 4), local.search(queries, 4), strict=True):
                assert [hit.path for hit in ours] == [hit.path for hit in theirs]
                assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-5)

    check(embedded=7)
    check(embedded=0)
    Image.new("RGB", (40, 40), "green").save(folder / "it's 1.png")
    (folder / "it's 3.png").unlink()
    check(embedded=1)


def test_batches_larger_than_one_search_are_in_order_and_exact(tmp_path: Path) -> None:
    rows = l2_normalise(np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32))
    store = EngineStore(str(tmp_path), "a", 16)
    with store.writing(lambda: None):
        store.put([Entry(f"/{row}", 1, 1) for row in range(len(rows))], rows)
        store.finish()
    again = EngineStore(str(tmp_path), "a", 16)
    assert len(again.entries) == 3000
    queries = rows[:300]
    found = [[int(hit.path.name) for hit in hits] for hits in again.search(queries, 10)]
    assert found == np.argsort(-(queries @ rows.T), axis=1)[:, :10].tolist()


def test_an_address_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be used as a LanceDB database"):
        EngineStore(str(tmp_path / "file"), "a", 16)
