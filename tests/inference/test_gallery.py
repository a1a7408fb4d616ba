"""A gallery is embedded once, updated for what changed, and searched exactly."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.errors import DataError
from clip_core.inference.clip import CLIPInference
from clip_core.inference.gallery import INDEX, Gallery, default_index, list_images
from tests.models import images_of


@pytest.fixture(scope="module")
def clip(tiny_bundle: Path) -> CLIPInference:
    return CLIPInference(tiny_bundle)


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path) -> Path:
    """Six images, one of them in a folder below."""
    images = tmp_path / "images"
    (images / "below").mkdir(parents=True)
    for number, path in enumerate(images_of(tiny_run)[:6]):
        shutil.copy(path, images / ("below" if number == 5 else "") / f"{number}.png")
    return images


def repaint(path: Path, colour: str) -> None:
    Image.new("RGB", (50, 40), colour).save(path)


def embeddings(clip: CLIPInference, gallery: Gallery) -> np.ndarray:
    return clip.encoder.encode_images(gallery.paths)


def test_a_second_opening_decodes_nothing_and_maps_the_stored_rows(clip: CLIPInference, folder: Path) -> None:
    first = clip.gallery(folder)
    again = clip.gallery(folder)
    assert (first.embedded, again.embedded) == (6, 0)
    assert again.paths == first.paths == sorted(folder.rglob("*.png"))
    assert isinstance(again.embeddings, np.memmap)
    np.testing.assert_allclose(again.embeddings, embeddings(clip, again), atol=1e-6)


def test_only_what_changed_is_embedded_again(clip: CLIPInference, folder: Path) -> None:
    clip.gallery(folder)
    repaint(folder / "1.png", "red")
    repaint(folder / "0-new.png", "blue")
    (folder / "3.png").unlink()
    updated = clip.gallery(folder)
    assert updated.embedded == 2
    assert updated.paths == sorted(folder.rglob("*.png"))
    np.testing.assert_allclose(updated.embeddings, embeddings(clip, updated), atol=1e-6)
    assert clip.gallery(folder).embedded == 0


def test_an_image_replaced_by_one_of_the_same_size_is_noticed_by_its_time(clip: CLIPInference, folder: Path) -> None:
    clip.gallery(folder)
    facts = (folder / "1.png").stat()
    os.utime(folder / "1.png", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert clip.gallery(folder).embedded == 1


def test_removing_every_image_leaves_an_empty_gallery(clip: CLIPInference, folder: Path) -> None:
    clip.gallery(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    empty = clip.gallery(folder)
    assert len(empty) == 0
    assert clip.text_image_retrieval("a", empty)[0] == []


def test_search_is_exact(clip: CLIPInference, folder: Path) -> None:
    gallery = clip.gallery(folder)
    found, values = clip.text_image_retrieval("a red circle", gallery, top_k=3)
    by_hand, expected = clip.text_image_retrieval("a red circle", gallery.paths, top_k=3)
    assert found == by_hand
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_unreadable_images_are_named_remembered_and_looked_at_again_when_they_change(
    clip: CLIPInference, folder: Path
) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    gallery = clip.gallery(folder)
    assert list(gallery.failures) == [folder / "broken.png"]
    assert len(gallery) == 6
    assert clip.gallery(folder).embedded == 0
    repaint(folder / "broken.png", "green")
    mended = clip.gallery(folder)
    assert (len(mended), mended.failures, mended.embedded) == (7, {}, 1)


def test_another_model_has_an_index_of_its_own(clip: CLIPInference, tiny_run: Path, folder: Path) -> None:
    index = folder.parent / "index"
    clip.gallery(folder, index)
    other = CLIPInference(tiny_run, "torch")
    assert other.gallery(folder, index).embedded == 6
    assert default_index(folder, "one") != default_index(folder, "two")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda index: (index / INDEX).write_text("{"),
        lambda index: (index / INDEX).write_text("[1]"),
        lambda index: next(index.glob("*.npy")).unlink(),
        lambda index: next(index.glob("*.npy")).write_bytes(b"\x93NUMPY"),
        lambda index: (index / INDEX).write_text(
            (index / INDEX).read_text().replace('"entries": [[', '"entries": [["x", 1, 1, null], [')
        ),
    ],
)
def test_a_damaged_index_is_made_again(clip: CLIPInference, folder: Path, spoil) -> None:
    index = folder.parent / "index"
    clip.gallery(folder, index)
    spoil(index)
    again = clip.gallery(folder, index)
    assert again.embedded == 6
    np.testing.assert_allclose(again.embeddings, embeddings(clip, again), atol=1e-6)


def test_an_index_never_holds_files_that_nothing_reads(clip: CLIPInference, folder: Path) -> None:
    index = folder.parent / "index"
    for colour in ("red", "green", "blue"):
        repaint(folder / "0.png", colour)
        clip.gallery(folder, index)
    assert len(list(index.iterdir())) == 2
    assert json.loads((index / INDEX).read_text())["embeddings"] in {path.name for path in index.iterdir()}


def test_a_place_that_cannot_be_written_costs_the_storing_only(clip: CLIPInference, folder: Path) -> None:
    (folder.parent / "file").write_text("in the way")
    gallery = clip.gallery(folder, folder.parent / "file" / "index")
    assert len(gallery) == 6
    assert clip.text_image_retrieval("a", gallery, 2)[1].shape == (2,)


def test_what_was_embedded_before_an_interruption_is_kept(clip: CLIPInference, folder: Path) -> None:
    index = folder.parent / "index"

    def interrupt(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Gallery.open(clip.encoder, folder, index, progress=interrupt)
    assert clip.gallery(folder, index).embedded == 2


def test_a_list_of_images_is_a_gallery_too(clip: CLIPInference, folder: Path) -> None:
    listed = [folder / "2.png", folder / "0.png", folder / "gone.png", folder / "2.png"]
    gallery = clip.gallery(listed)
    assert gallery.paths == [folder / "2.png", folder / "0.png"]
    assert list(gallery.failures) == [folder / "gone.png"]


def test_hostile_file_names_are_names(clip: CLIPInference, folder: Path) -> None:
    names = ["\x1b[31mred.png", "new\nline.png", "rtl\u202etxt.png", os.fsdecode(b"not-utf8-\xff.png"), "$x^2$.png"]
    for name in names:
        repaint(folder / name, "red")
    assert len(clip.gallery(folder)) == 6 + len(names)
    again = clip.gallery(folder)
    assert again.embedded == 0
    assert {path.name for path in again.paths} >= set(names)


def test_hidden_files_other_files_and_linked_folders_are_left_out(folder: Path) -> None:
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    (folder / ".folder").mkdir()
    repaint(folder / ".folder" / "a.png", "red")
    (folder / "loop").symlink_to(folder)
    assert len(list_images(folder)) == 6


def test_a_folder_that_is_not_there_is_one_sentence(clip: CLIPInference, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        clip.gallery(tmp_path / "nowhere")


def test_the_users_cache_keeps_a_bounded_number_of_galleries(
    clip: CLIPInference, folder: Path, own_cache: Path
) -> None:
    for number in range(70):
        place = own_cache / "clip-tui" / "galleries" / f"old{number}"
        place.mkdir(parents=True)
        (place / INDEX).write_text("{}")
        os.utime(place / INDEX, (number, number))
    clip.gallery(folder)
    left = {path.name for path in (own_cache / "clip-tui" / "galleries").iterdir()}
    assert len(left) == 64
    assert default_index(folder, clip.encoder.about.identity).name in left
