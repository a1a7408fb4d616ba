"""A gallery is embedded once, updated for what changed, and searched exactly."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from clip_core.errors import ClipError, DataError, UsageError
from clip_core.inference.clip import CLIPInference
from clip_core.inference.gallery import INDEX, Gallery, OpenGalleries, default_index
from clip_core.inference.gallery_images import list_images
from tests.models import environment, images_of


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


def sql(index: Path, statement: str) -> None:
    with closing(sqlite3.connect(index / INDEX)) as database, database:
        database.execute(statement)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda index: (index / INDEX).write_text("{"),
        lambda index: (index / INDEX).write_bytes((index / INDEX).read_bytes()[:5000]),
        lambda index: next(index.glob("*.f32")).unlink(),
        lambda index: next(index.glob("*.f32")).write_bytes(b"1234"),
        lambda index: sql(index, "UPDATE images SET row = 7 WHERE row = 1"),
        lambda index: sql(index, "UPDATE facts SET value = '../' WHERE key = 'file'"),
        lambda index: sql(index, "DROP TABLE images"),
    ],
)
@pytest.mark.fault("damaged entry of a cache or a gallery")
def test_a_damaged_index_is_made_again(clip: CLIPInference, folder: Path, spoil) -> None:
    index = folder.parent / "index"
    clip.gallery(folder, index)
    spoil(index)
    again = clip.gallery(folder, index)
    assert again.embedded == 6
    np.testing.assert_allclose(again.embeddings, embeddings(clip, again), atol=1e-6)


def test_an_index_never_holds_files_that_nothing_reads_and_keeps_those_of_others(
    clip: CLIPInference, folder: Path
) -> None:
    index = folder.parent / "index"
    index.mkdir()
    (index / "embeddings-mine.f32").touch()
    (index / f"embeddings-{'0' * 32}.f32").touch()  # of a process that was killed
    for colour in ("red", "green", "blue", "white"):
        repaint(folder / "0.png", colour)
        gallery = clip.gallery(folder, index)
        np.testing.assert_allclose(gallery.embeddings, embeddings(clip, gallery), atol=1e-6)
    assert len(list(index.iterdir())) == 4  # the index, its lock, the embeddings, and the file that is not ours
    assert next(index.glob("embeddings-" + "?" * 32 + ".f32")).stat().st_size < 9 * 16 * 4, "dead rows were removed"


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

    with pytest.raises(KeyboardInterrupt, match="4 of 6 images embedded and kept"):
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


def test_hidden_files_thumbnails_other_files_and_linked_folders_are_left_out(clip: CLIPInference, folder: Path) -> None:
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    (folder / ".folder").mkdir()
    repaint(folder / ".folder" / "a.png", "red")
    (folder / "loop").symlink_to(folder)
    (folder / "@eaDir" / "0.png").mkdir(parents=True)
    repaint(folder / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_M.jpg", "red")
    assert len(list_images(folder)) == 6
    left_out = {path.name for path in clip.gallery(folder).left_out}
    assert left_out == {".hidden.png", ".folder", "@eaDir"}


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


def test_queries_of_every_kind_are_answered_in_one_batch(clip: CLIPInference, folder: Path) -> None:
    gallery = clip.gallery(folder)
    vector = clip.encoder.encode_texts(["a red circle"])[0]
    with Image.open(folder / "2.png") as opened:
        image = opened.convert("RGB")
    by_text, by_path, by_image, by_vector = gallery.search(["a red circle", folder / "2.png", image, 5 * vector], k=4)
    assert by_path[0].path == folder / "2.png"
    assert by_path[0].score == pytest.approx(1, abs=1e-5)
    assert [hit.path for hit in by_image] == [hit.path for hit in by_path]
    assert [hit.path for hit in by_vector] == [hit.path for hit in by_text]
    alone = gallery.search("a red circle", 4)[0]
    assert [hit.path for hit in alone] == [hit.path for hit in by_text]
    assert [hit.score for hit in by_text] == sorted((hit.score for hit in by_text), reverse=True)
    assert len(gallery.search(np.stack([vector, vector]), 100)[1]) == 6
    assert gallery.search([], 3) == []
    assert len(gallery.search(np.array(["a", "b"]), 3)) == len(gallery.search(iter(["a", "b"]), 3)) == 2


@pytest.mark.parametrize(
    ("query", "k", "message"),
    [
        ("a", 0, "k is 0"),
        ([None], 1, "query 1 is None"),
        (np.ones(3, np.float32), 1, "of 16 values"),
        (np.full(16, np.nan, np.float32), 1, "not finite"),
        ({"a": 1}, 1, "give a text"),
    ],
)
def test_a_query_that_is_none_is_one_sentence(clip: CLIPInference, folder: Path, query, k: int, message: str) -> None:
    with pytest.raises(ClipError, match=message):
        clip.gallery(folder).search(query, k)


def test_refresh_notices_what_was_added_removed_or_written_over_and_reads_nothing_else(
    clip: CLIPInference, folder: Path
) -> None:
    gallery = clip.gallery(folder)
    assert not gallery.refresh()
    for path in (folder, folder / "below"):
        os.utime(path, (1, 1))  # long ago: such a folder is not read again
    gallery.refresh()
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())  # in place
    os.utime(folder, (1, 1))
    assert gallery.refresh()
    assert gallery.embedded == 1
    repaint(folder / "below" / "new.png", "red")
    assert gallery.refresh()
    assert (len(gallery), gallery.embedded) == (7, 1)
    (folder / "3.png").unlink()
    assert gallery.refresh()
    assert (len(gallery), gallery.embedded) == (6, 0)
    assert folder / "3.png" not in {hit.path for hit in gallery.search("a", 100)[0]}
    assert not gallery.refresh()
    np.testing.assert_allclose(gallery.embeddings, embeddings(clip, gallery), atol=1e-6)


def test_open_galleries_are_not_read_again_and_are_few(clip: CLIPInference, folder: Path) -> None:
    galleries = OpenGalleries(clip.encoder, most=2)
    first = galleries.get(folder)
    assert galleries.get(folder) is first
    galleries.get([folder / "1.png"])
    galleries.get([folder / "2.png"])
    assert galleries.get(folder) is not first


@pytest.mark.parametrize("name", ["all.npz", "all.parquet"])
def test_a_saved_gallery_has_every_path_and_embedding(clip: CLIPInference, folder: Path, name: str) -> None:
    repaint(folder / "zwölf.png", "red")
    gallery = clip.gallery(folder)
    gallery.save(folder.parent / name)
    if name.endswith("npz"):
        with np.load(folder.parent / name) as stored:
            paths, vectors = stored["paths"].tolist(), stored["embeddings"]
    else:
        table = pyarrow.parquet.read_table(folder.parent / name)
        paths, vectors = table["path"].to_pylist(), np.array(table["embedding"].to_pylist(), np.float32)
    assert paths == [str(path) for path in gallery.paths]
    np.testing.assert_array_equal(vectors, gallery.embeddings)
    with pytest.raises(UsageError, match=r"\.parquet or \.npz"):
        gallery.save(folder.parent / "all.csv")


SLOW = """
import sys, time
from pathlib import Path
from clip_core.inference import gallery_images
from clip_core.inference.clip import CLIPInference
from clip_core.inference.gallery import Gallery

def progress(done, total):
    print(done, flush=True)
    time.sleep(0.05)

gallery_images._COMMIT_SECONDS = 0.1
encoder = CLIPInference(sys.argv[1]).encoder
gallery = Gallery.open(encoder, sys.argv[2], Path(sys.argv[3]), progress, lambda: print("waiting", flush=True))
print("embedded", gallery.embedded)
"""


@pytest.mark.fault("SIGKILL after each change of a gallery")
def test_killed_halfway_it_goes_on_and_two_at_once_embed_each_image_once(
    clip: CLIPInference, tiny_bundle: Path, folder: Path
) -> None:
    for number in range(60):
        repaint(folder / f"more{number}.png", "red")
    index = folder.parent / "index"
    command = [sys.executable, "-c", SLOW, str(tiny_bundle), str(folder), str(index)]

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)

    killed = start()
    assert killed.stdout is not None
    while killed.stdout.readline() != "20\n":
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with next(index.glob("*.f32")).open("ab") as handle:
        handle.write(b"torn")  # written, never committed
    said = [process.communicate(timeout=120)[0] for process in [start(), start()]]
    counts = sorted(int(lines.split()[-1]) for lines in said)
    assert counts[0] == 0, "one of them found everything embedded"
    assert 40 < counts[1] < 66, "what was committed before the kill was kept"
    assert "waiting" in said[0] + said[1]
    assert sorted(path.suffix for path in index.iterdir()) == ["", ".f32", ".sqlite"]
    gallery = clip.gallery(folder, index)
    assert gallery.embedded == 0
    np.testing.assert_allclose(gallery.embeddings, embeddings(clip, gallery), atol=1e-6)
