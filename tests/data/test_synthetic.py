"""Drawn shapes: the same for the same seed, balanced, learnable, and with combinations that stay unseen."""

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_core.data.formats.detect import read_data
from clip_core.data.synthetic import (
    COLOURS,
    COMBINATIONS,
    SHAPES,
    UNSEEN_EACH,
    caption,
    create_synthetic,
    draw_shape,
    unseen_file,
)
from clip_core.errors import DataError, UsageError
from tests.pairs import check_pairs


def captions(data_file: Path) -> list[str]:
    return [pair["caption"] for pair in json.loads(data_file.read_text())]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_seed_draws_the_same_bytes_and_another_does_not(tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        create_synthetic(tmp_path / name / "set.json", count=40, seed=seed, size=32, holdout_combinations=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")


def test_every_combination_is_drawn_equally_often(tmp_path: Path):
    create_synthetic(tmp_path / "set.json", count=54, seed=0, size=16)
    assert Counter(captions(tmp_path / "set.json")) == {caption(*both): 3 for both in COMBINATIONS}
    assert not unseen_file(tmp_path / "set.json").exists()


def test_every_image_is_a_usable_pair_of_its_size(tmp_path: Path):
    create_synthetic(tmp_path / "set.json", count=20, seed=0, size=24)
    sizes: dict[Path, tuple[int, int]] = {}
    report = check_pairs(read_data(tmp_path / "set.json").pairs, sizes=sizes)
    assert len(report.good) == 20
    assert set(sizes.values()) == {(24, 24)}


@settings(max_examples=8, deadline=None)
@given(holdout=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_validation_combinations_are_never_in_training_and_every_colour_and_shape_is(
    holdout: int, seed: int, tmp_path_factory: pytest.TempPathFactory
):
    data_file = tmp_path_factory.mktemp("holdout") / "set.json"
    drawn = create_synthetic(data_file, count=18, seed=seed, size=16, holdout_combinations=holdout)
    seen, unseen = Counter(captions(data_file)), Counter(captions(unseen_file(data_file)))
    assert set(unseen) == set(drawn.validation)
    assert set(unseen.values()) == {UNSEEN_EACH}
    assert not set(seen) & set(unseen)
    assert len(seen) + len(unseen) == len(COMBINATIONS)
    words = {word for text in seen for word in text.split()}
    assert words - {"an"} == {"a", *COLOURS, *SHAPES}
    shapes_of = Counter(text.split()[1] for text in seen)
    assert max(shapes_of.values()) - min(shapes_of.values()) <= 1  # no colour loses two shapes before each lost one


@settings(max_examples=60, deadline=None)
@given(combination=st.sampled_from(COMBINATIONS), seed=st.integers(0, 100_000))
def test_the_shape_is_large_and_stands_out_from_the_background(combination: tuple[str, str], seed: int):
    size = 64
    pixels = np.asarray(draw_shape(*combination, size, random.Random(seed))).astype(int)
    distance = np.linalg.norm(pixels - np.array(COLOURS[combination[0]]), axis=2)
    inside = distance < 25
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert np.ptp(rows) + 1 >= 0.3 * size
    assert np.ptp(columns) + 1 >= 0.25 * size  # a triangle's tip is narrower than a pixel
    assert np.median(distance[~inside]) > 90


def test_the_three_shapes_fill_their_boxes_as_they_should():
    shares = {}
    for shape in SHAPES:
        pixels = np.asarray(draw_shape("red", shape, 256, random.Random(4))).astype(int)
        inside = np.linalg.norm(pixels - np.array(COLOURS["red"]), axis=2) < 25
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        shares[shape] = inside.sum() / box
    assert shares == pytest.approx({"circle": math.pi / 4, "square": 1.0, "triangle": 0.5}, abs=0.03)


def test_a_list_that_is_there_is_never_overwritten(tmp_path: Path):
    (tmp_path / "set.json").write_text("mine")
    with pytest.raises(UsageError, match="exists; give another name"):
        create_synthetic(tmp_path / "set.json", count=18, seed=0, size=16)
    assert (tmp_path / "set.json").read_text() == "mine"


def test_two_lists_in_one_folder_do_not_share_images(tmp_path: Path):
    create_synthetic(tmp_path / "a.json", count=18, seed=0, size=16)
    before = contents(tmp_path / "images" / "a")
    create_synthetic(tmp_path / "b.json", count=18, seed=1, size=32)
    assert contents(tmp_path / "images" / "a") == before


def test_where_images_cannot_be_written_no_list_is_left(tmp_path: Path):
    (tmp_path / "images").write_text("in the way")
    with pytest.raises(DataError, match="cannot draw images beside"):
        create_synthetic(tmp_path / "set.json", count=18, seed=0, size=16, holdout_combinations=1)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_more_than_twelve_validation_combinations_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="it may be 0 to 12"):
        create_synthetic(tmp_path / "set.json", count=18, seed=0, size=16, holdout_combinations=13)
