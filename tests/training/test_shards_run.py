"""A run on tar shards, from the command to every reader of its images."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from clip_core.data.image_files import member_of
from clip_core.inference.clip import CLIPInference
from clip_core.run.reader import RunReader
from clip_tui.gallery import read_gallery, read_parts
from clip_tui.widgets.halfblocks import strips_of
from tests.conftest import SHORT_RUN, clip_train


@pytest.fixture(scope="module")
def shards(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn shapes in two shards."""
    folder = tmp_path_factory.mktemp("shards")
    pairs = json.loads(shapes.read_text())
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for pair in pairs[number::2]:
                image = shapes.parent / pair["image"]
                text = folder / f"{image.stem}.txt"
                text.write_text(pair["caption"])
                tar.add(image, image.name)
                tar.add(text, text.name)
                text.unlink()
    return folder


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tar"
    done = clip_train("--data", str(shards / "{0..1}.tar"), "--run-dir", str(run), *SHORT_RUN, cwd=run.parent)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "read as webdataset: 2 .tar shards." in done.stdout + done.stderr
    return run


def test_the_images_of_a_run_are_members_of_its_shards(run: Path, shards: Path):
    probe = RunReader(run).probe()
    assert probe is not None
    for name in [*(pair.image for pair in RunReader(run).validation_pairs().pairs), *probe.images]:
        member = member_of(Path(name))
        assert member is not None
        assert member.shard.parent == shards


def test_retrieval_and_the_gallery_read_them(run: Path):
    clip = CLIPInference(run, backend="torch")
    paths = [Path(image) for image in read_gallery(run).images]
    gallery = clip.gallery(paths)
    assert gallery.paths == paths
    assert not gallery.failures
    assert clip.gallery(paths).embedded == 0
    found, _ = clip.text_image_retrieval("a red circle", gallery, 3)
    assert set(found) <= set(paths)


def test_the_interface_shows_them_by_their_part_of_the_split(run: Path):
    parts = read_parts(run, RunReader(run).record().config.data)
    assert (len(parts.training), len(parts.validation)) == (162, 18)
    assert strips_of(Path(parts.training[0][0]), 10, 5, plain=False)


def test_a_run_on_shards_resumes(run: Path, tmp_path: Path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    done = clip_train("--resume", "--run-dir", str(copy), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 10" in done.stdout + done.stderr


def test_a_table_and_a_list_of_the_same_pairs_train_the_same(shapes: Path, tmp_path: Path):
    """The format changes nothing: a table of the same pairs gives the same losses as the list."""
    pairs = json.loads(shapes.read_text())
    table = shapes.with_name("pairs.csv")
    table.write_text("image,caption\n" + "".join(f"{pair['image']},{pair['caption']}\n" for pair in pairs))
    losses = []
    for name, data in (("a", shapes), ("b", table)):
        done = clip_train("--data-file", str(data), "--run-dir", str(tmp_path / name), *SHORT_RUN, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
    assert losses[0] == losses[1]
