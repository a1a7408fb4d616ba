"""Pairs as rows, the split by image, the classes, and loading it all."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_core.config import DataConfig
from clip_core.data.dataset import PairSet, few_classes, load_data, split_by_image
from clip_core.data.pairs import Pair
from clip_core.errors import DataError, UsageError
from clip_core.network import Preprocessing
from clip_core.run.reader import RunReader
from clip_core.text import normalise_caption

SQUARE = Preprocessing(image_size=16)

pair_lists = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abcdefgh")), min_size=2, max_size=40)


def pair_set(pairs: list[tuple[int, str]], root: str = "/data") -> PairSet:
    return PairSet.from_pairs([Pair(f"{root}/{n}.png", text, i, f"{n}.png") for i, (n, text) in enumerate(pairs, 1)])


def spelt_out(pairset: PairSet) -> list[tuple[str, str]]:
    rows = zip(pairset.pair_images, pairset.pair_captions, strict=True)
    return [(pairset.names[image], pairset.captions[caption]) for image, caption in rows]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty images, each of its own colour."""
    folder = tmp_path_factory.mktemp("forty")
    for number in range(40):
        Image.new("RGB", (20, 20), (number * 6, 100, 200)).save(folder / f"{number}.png")
    return folder


def write_list(path: Path, entries: list[tuple[str, Any]]) -> Path:
    path.write_text(json.dumps([{"image": image, "caption": caption} for image, caption in entries]))
    return path


def test_pairs_match_by_image_or_by_normalised_caption():
    pairs = pair_set([(1, "A cat"), (2, " a  CAT"), (1, "asleep"), (3, "a dog")])
    assert pairs.captions == ["A cat", "asleep", "a dog"]
    assert pairs.pair_images.tolist() == [0, 1, 0, 2]
    assert pairs.pair_captions.tolist() == [0, 0, 1, 2]


@given(pairs=pair_lists, seed=st.integers(0, 99))
def test_a_subset_keeps_the_pairs_of_its_images_and_nothing_else(pairs: list[tuple[int, str]], seed: int):
    whole = pair_set(pairs)
    mask = np.random.default_rng(seed).random(len(whole.images)) < 0.5
    subset = whole.subset(mask)
    kept = {whole.names[row] for row in np.flatnonzero(mask)}
    assert spelt_out(subset) == [pair for pair in spelt_out(whole) if pair[0] in kept]
    assert set(subset.pair_images.tolist()) == set(range(len(subset.images)))
    assert set(subset.pair_captions.tolist()) == set(range(len(subset.captions)))


@given(pairs=pair_lists, seed=st.integers(0, 99), fraction=st.floats(0.01, 0.99))
def test_the_split_parts_images_not_pairs(pairs: list[tuple[int, str]], seed: int, fraction: float):
    whole = pair_set(pairs)
    if len(whole.images) < 2:
        with pytest.raises(DataError, match="one image cannot be split"):
            split_by_image(whole, fraction, seed)
        return
    train, val = split_by_image(whole, fraction, seed)
    assert len(train)
    assert len(val)
    assert not set(train.images) & set(val.images)
    assert sorted(spelt_out(train) + spelt_out(val)) == sorted(spelt_out(whole))


@given(pairs=pair_lists.filter(lambda p: len({n for n, _ in p}) > 1), seed=st.integers(0, 99))
def test_the_split_knows_neither_the_order_of_the_list_nor_the_folder(pairs: list[tuple[int, str]], seed: int):
    shuffled = random.Random(seed).sample(pairs, len(pairs))
    here, there = pair_set(pairs), pair_set(shuffled, root="/elsewhere/copy")
    assert set(split_by_image(here, 0.3, 5)[1].names) == set(split_by_image(there, 0.3, 5)[1].names)


def test_another_seed_holds_out_other_images_and_the_share_is_exact():
    whole = pair_set([(n, str(n)) for n in range(200)])
    validation = [set(split_by_image(whole, 0.1, seed)[1].names) for seed in range(3)]
    assert [len(names) for names in validation] == [20, 20, 20]
    assert validation[0] != validation[1] != validation[2]


def test_a_few_more_images_move_only_a_few_others():
    before = pair_set([(n, str(n)) for n in range(200)])
    after = pair_set([(n, str(n)) for n in range(210)])
    was, is_now = (set(split_by_image(pairs, 0.1, 0)[1].names) for pairs in (before, after))
    assert len(was - is_now) <= 10


def test_captions_of_many_images_are_classes():
    train = pair_set([(n, f"class {n % 4}") for n in range(40)])
    val = pair_set([(n, f"CLASS {n % 4}") for n in range(40, 50)])
    assert few_classes(train, val) == ["class 0", "class 1", "class 2", "class 3"]


@pytest.mark.parametrize(
    "pairs",
    [
        [(n, f"caption {n}") for n in range(60)],  # every image has its own
        [(n, f"class {n % 20}") for n in range(60)],  # three images each
        [(n, "the same") for n in range(60)],  # one class
        [*((n, f"class {n % 4}") for n in range(60)), (0, "class 1")],  # an image of two
    ],
)
def test_captions_that_do_not_look_like_classes_are_not(pairs: list[tuple[int, str]]):
    assert few_classes(pair_set(pairs), pair_set([(99, pairs[0][1])])) is None


@settings(max_examples=5, deadline=None)
@given(cache=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 1000))
def test_store_rows_are_the_rows_of_the_set(cache: float, seed: int, images: Path):
    data_file = write_list(images / "all.json", [(f"{n}.png", f"class {n % 4}") for n in range(40)])
    data = load_data(DataConfig(data_file=data_file, cache_gb=cache), SQUARE, seed, lambda _: None)
    for part, store in ((data.train, data.train_store), (data.val, data.val_store)):
        assert store.paths == part.images
        red = store.get(np.arange(len(store)))[:, 8, 8, 0]
        assert [int(name.removesuffix(".png")) * 6 for name in part.names] == red.tolist()
    assert len(data.val.images) == 4
    assert data.classes == ["class 0", "class 1", "class 2", "class 3"]


def test_bad_pairs_are_skipped_said_and_reported(images: Path, tmp_path: Path):
    entries = [(f"{n}.png", str(n)) for n in range(40)]
    data_file = write_list(tmp_path / "list.json", [("gone.png", "x"), *entries])
    said: list[str] = []
    data = load_data(DataConfig(data_file=data_file, image_root=images), SQUARE, 0, said.append)
    assert len(data.train) + len(data.val) == 40
    assert [bad.pair.entry for bad in data.report.bad] == [1]
    assert "1 of 41 pairs is unusable" in said[2]


def test_bad_pairs_are_refused_when_asked_or_when_too_many(images: Path, tmp_path: Path):
    few = write_list(tmp_path / "few.json", [("gone.png", "x"), *((f"{n}.png", str(n)) for n in range(40))])
    many = write_list(tmp_path / "many.json", [("0.png", "a"), ("gone.png", "b"), ("1.png", "c")])
    none = write_list(tmp_path / "none.json", [("gone.png", "b"), ("1.png", "")])
    for config, message in [
        (
            DataConfig(data_file=few, bad_pairs="refuse"),
            "few.json, entry 1: no image .* 1 of 41 pairs is affected",
        ),
        (DataConfig(data_file=many), "entry 2: .* more than --max-bad-share 0.05 allows"),
        (DataConfig(data_file=none, max_bad_share=1), "All 2 pairs are affected"),
    ]:
        with pytest.raises(DataError, match=message):
            load_data(config.model_copy(update={"image_root": images}), SQUARE, 0, lambda _: None)


def test_a_val_file_is_the_evaluation_set_and_shared_images_are_said(images: Path):
    train = write_list(images / "train.json", [(f"{n}.png", f"number {n}") for n in range(30)])
    val = write_list(images / "val.json", [(f"{n}.png", f"number {n}") for n in range(28, 40)])
    said: list[str] = []
    data = load_data(DataConfig(data_file=train, val_file=val), SQUARE, 0, said.append)
    assert (len(data.train), len(data.val)) == (30, 12)
    assert any(sentence.startswith("2 images are in both sets") for sentence in said)


def write_table(path: Path, splits: list[str]) -> Path:
    rows = [f"{n}.png,number {n},{split}" for n, split in enumerate(splits)]
    path.write_text("\n".join(["image,caption,split", *rows]) + "\n")
    return path


def test_the_splits_of_a_table_are_honoured_and_said_in_one_line(images: Path):
    file = write_table(images / "splits.csv", ["train"] * 30 + ["val"] * 6 + ["test"] * 4)
    said: list[str] = []
    data = load_data(DataConfig(data_file=file), SQUARE, 0, said.append)
    assert {int(Path(name).stem) for name in data.train.names} == set(range(30))
    assert {int(Path(name).stem) for name in data.val.names} == set(range(30, 36))
    assert said[2] == f"{file}: split column: 30 train, 6 val for validation, 4 test not used."
    assert data.report.total == 36
    assert load_data(DataConfig(data_file=file), SQUARE, 7, said.append).fingerprint == data.fingerprint


def test_with_a_validation_file_the_other_splits_of_the_training_list_are_not_used(images: Path):
    file = write_table(images / "splits.csv", ["train"] * 30 + ["test"] * 10)
    other = write_list(images / "val.json", [(f"{n}.png", f"number {n}") for n in range(36, 40)])
    said: list[str] = []
    data = load_data(DataConfig(data_file=file, val_file=other), SQUARE, 0, said.append)
    assert (len(data.train), len(data.val)) == (30, 4)
    assert f"{file}: split column: 30 train, 10 test not used; --val-file is the validation set." in said


def test_pairs_that_a_run_flagged_are_left_out_and_counted(images: Path, tmp_path: Path):
    file = write_list(images / "flagged.json", [(f"{n}.png", f"number {n}") for n in range(40)])
    for n in (3, 4):
        RunReader(tmp_path).toggle_flag(str(images / f"{n}.png"), f"number {n}")
    RunReader(tmp_path).toggle_flag(str(images / "5.png"), "another caption")
    said: list[str] = []
    data = load_data(DataConfig(data_file=file, leave_out=tmp_path / "flags.json"), SQUARE, 0, said.append)
    assert {int(Path(name).stem) for name in (*data.train.names, *data.val.names)} == set(range(40)) - {3, 4}
    assert f"2 pairs of {file} left out by {tmp_path / 'flags.json'}." in said


def test_how_the_list_was_read_is_said_in_two_lines(images: Path):
    file = write_list(images / "said.json", [(f"{n}.png", f"number {n}") for n in range(40)])
    said: list[str] = []
    load_data(DataConfig(data_file=file), SQUARE, 0, said.append)
    assert said[0] == f"{file} read as json: it is a JSON list; images in image, captions in caption."
    assert said[1].startswith('first pair 0.png "number 0"')


def test_without_a_list_the_way_out_is_named():
    with pytest.raises(UsageError, match=r"--data PATH, or --create-synthetic"):
        load_data(DataConfig(), SQUARE, 0, lambda _: None)


def test_shapes_are_drawn_once_and_found_the_next_time(tmp_path: Path):
    data_file = tmp_path / "new" / "shapes.json"
    config = DataConfig(data_file=data_file, create_synthetic=True, synthetic_count=90, synthetic_size=16)
    said: list[str] = []
    first = load_data(config, SQUARE, 0, said.append)
    written = data_file.stat().st_mtime_ns
    second = load_data(config, SQUARE, 0, said.append)
    assert data_file.stat().st_mtime_ns == written
    assert said[0].startswith("drew 90 images")
    assert "exists, so no shapes are drawn" in said[4]
    assert first.train.images == second.train.images
    assert {normalise_caption(text) for text in first.classes or []} >= {"a red circle"}


def test_a_data_set_that_was_moved_is_split_the_same_and_has_the_same_fingerprint(images: Path, tmp_path: Path):
    write_list(images / "all.json", [(f"{n}.png", f"number {n}") for n in range(40)])
    shutil.copytree(images, tmp_path / "copy")
    first, second = (
        load_data(DataConfig(data_file=folder / "all.json"), SQUARE, 0, lambda _: None)
        for folder in (images, tmp_path / "copy")
    )
    assert first.val.names == second.val.names
    assert first.fingerprint == second.fingerprint
    with_val = DataConfig(data_file=images / "all.json", val_file=images / "all.json")
    assert load_data(with_val, SQUARE, 0, lambda _: None).fingerprint == "-".join([first.fingerprint] * 2)
