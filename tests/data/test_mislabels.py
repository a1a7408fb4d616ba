"""Planted wrong captions: which pairs are found, what is promised of them, and that right ones are left alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.data.check import check_data
from clip_core.data.findings import Findings
from clip_core.data.mislabels import LEAST, PRECISION, calibrate, find_mislabels
from clip_core.data.pairs import Pair
from clip_core.scoring import FloatArray, l2_normalise

IMAGES, PLANTED, SIZE = 200, 20, 24


@dataclass
class NoisyTowers:
    """Image and caption number N lie around one point; `noise` is their distance from it."""

    noise: float

    def encode_images(self, images: Sequence[Path]) -> FloatArray:
        return self._embed([int(path.stem) for path in images], 1)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return self._embed([int(text.split()[-1]) for text in texts], 2)

    def _embed(self, numbers: Sequence[int], side: int) -> FloatArray:
        rows = [
            np.random.default_rng(number).normal(size=SIZE)
            + self.noise * np.random.default_rng([number, side]).normal(size=SIZE)
            for number in numbers
        ]
        return l2_normalise(np.array(rows, dtype=np.float32))


@dataclass
class ClassTowers:
    """Images of one class, the number modulo 4, lie around one point."""

    def encode_images(self, images: Sequence[Path]) -> FloatArray:
        numbers = [int(path.stem) for path in images]
        rows = [np.eye(SIZE)[n % 4] * 3 + np.random.default_rng(n).normal(size=SIZE) * 0.5 for n in numbers]
        return l2_normalise(np.array(rows, dtype=np.float32))

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        raise AssertionError("classes need no captions")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("numbered")
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(IMAGES)]


def listed(images: list[str], captions: list[str]) -> list[Pair]:
    return [
        Pair(path, caption, number + 1) for number, (path, caption) in enumerate(zip(images, captions, strict=True))
    ]


def with_wrong(captions: list[str]) -> list[str]:
    """The captions of the first `PLANTED` images rotated among them."""
    return [*captions[1:PLANTED], captions[0], *captions[PLANTED:]]


def test_planted_captions_are_found_and_the_flags_have_them(images: list[str]) -> None:
    check = check_data(listed(images, with_wrong([f"the number {n}" for n in range(IMAGES)])))
    found = find_mislabels(check, NoisyTowers(0.6))
    assert found is not None
    assert not found.classes
    wrong = found.rows < PLANTED
    assert wrong.sum() >= 0.9 * PLANTED
    assert wrong.mean() >= 0.8
    assert (np.diff(found.likelihood) <= 0).all()
    findings = Findings(check, found)
    finding = next(each for each in findings.found if each.kind == "mislabelled")
    assert finding.count == len(found.rows)
    assert finding.left_out
    assert set(np.flatnonzero(findings.leave_out)) == set(found.rows.tolist())


def test_wrong_classes_are_found_without_their_captions(images: list[str]) -> None:
    captions = [f"class {'abcd'[number % 4]}" for number in range(IMAGES)]
    check = check_data(listed(images, with_wrong(captions)))
    found = find_mislabels(check, ClassTowers())
    assert found is not None
    assert found.classes
    assert set(range(PLANTED)) <= set(found.rows.tolist())
    assert PLANTED / len(found.rows) >= PRECISION - 0.1  # an estimate from 200 pairs


def test_right_captions_are_left_alone(images: list[str]) -> None:
    check = check_data(listed(images, [f"the number {n}" for n in range(IMAGES)]))
    found = find_mislabels(check, NoisyTowers(0.6))
    assert found is not None
    assert len(found.rows) <= 0.01 * IMAGES


def test_a_model_that_knows_nothing_is_said_to(images: list[str]) -> None:
    check = check_data(listed(images, [f"the number {n}" for n in range(IMAGES)]))
    findings = Findings(check, find_mislabels(check, NoisyTowers(50.0)))
    assert any("AUC 0." in note for note in findings.notes)


def test_of_few_pairs_nothing_is_estimated(images: list[str]) -> None:
    few = images[: LEAST - 1]
    assert find_mislabels(check_data(listed(few, [f"a {n}" for n in range(len(few))])), NoisyTowers(0.1)) is None


def test_likelihood_is_the_share_of_wrong_pairs() -> None:
    random = np.random.default_rng(0)
    wrong = random.normal(0, 1, 1000)
    scores = np.concatenate([wrong, random.normal(4, 1, 9000)])
    found = calibrate(scores, random.normal(0, 1, 5000))
    flagged = scores <= found.threshold
    assert abs(flagged[:1000].sum() / flagged.sum() - found.likelihood[flagged].min()) < 0.1
