"""Planted wrong captions: which pairs are found, what is promised of them, and that right ones are left alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.data.check import check_data
from clip_core.data.findings import Findings
from clip_core.data.mislabel_likelihood import calibrate
from clip_core.data.mislabel_scores import LEAST
from clip_core.data.mislabels import find_mislabels
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


class BlurredImages(NoisyTowers):
    """Captions are embedded well, images badly."""

    def encode_images(self, images: Sequence[Path]) -> FloatArray:
        numbers = [int(path.stem) for path in images]
        blur = np.array([np.random.default_rng([n, 3]).normal(size=SIZE) for n in numbers], dtype=np.float32)
        return l2_normalise(super().encode_images(images) + 0.3 * blur)


@dataclass
class Memorised(NoisyTowers):
    """As `NoisyTowers`, but the memorised captions are embedded where their images are."""

    memorised: dict[str, int]

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        known = [self.memorised.get(text) for text in texts]
        rows = super().encode_texts(texts)
        for place, number in enumerate(known):
            if number is not None:
                rows[place] = self._embed([number], 1)[0]
        return rows


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
    assert found.agreement is None
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
    assert found.agreement is not None
    assert set(range(PLANTED)) <= set(found.rows.tolist())
    assert PLANTED / len(found.rows) >= 0.7


def test_right_captions_are_left_alone(images: list[str]) -> None:
    check = check_data(listed(images, [f"the number {n}" for n in range(IMAGES)]))
    found = find_mislabels(check, NoisyTowers(0.6))
    assert found is not None
    assert len(found.rows) <= 0.01 * IMAGES


def test_a_model_that_knows_nothing_names_nothing_and_is_said_to(images: list[str]) -> None:
    check = check_data(listed(images, with_wrong([f"the number {n}" for n in range(IMAGES)])))
    found = find_mislabels(check, NoisyTowers(50.0))
    assert found is not None
    assert len(found.rows) == 0
    assert any("AUC 0." in note for note in Findings(check, found).notes)


def test_other_captions_of_an_image_tell_on_a_wrong_one(images: list[str]) -> None:
    """A tower of images that says little, and three captions an image: most of what is known is in the captions."""
    captions = [f"the number {n}" for n in range(IMAGES)]
    listing = listed(
        images * 3,
        [*with_wrong(captions), *(f"a number {n}" for n in range(IMAGES)), *(f"number {n}" for n in range(IMAGES))],
    )
    found = find_mislabels(check_data(listing), BlurredImages(0.4))
    assert found is not None
    assert (found.rows < PLANTED).sum() >= 0.8 * PLANTED
    alone = find_mislabels(check_data(listing[:IMAGES]), BlurredImages(0.4))
    assert alone is not None
    assert (alone.rows < PLANTED).sum() < (found.rows < PLANTED).sum()


def test_memorised_pairs_are_scored_apart(images: list[str]) -> None:
    """The model brings together what it was trained on, wrong or not; the rest is scored as if those were not there."""
    captions = with_wrong([f"the number {n}" for n in range(IMAGES)])
    check = check_data(listed(images, captions))
    trained = np.arange(IMAGES) >= IMAGES // 2
    towers = Memorised(0.6, {caption: number for number, caption in enumerate(captions) if trained[number]})
    found = find_mislabels(check, towers, trained)
    assert found is not None
    assert (found.rows < PLANTED).sum() >= 0.8 * PLANTED
    assert (found.rows < PLANTED).mean() >= 0.8
    few = np.arange(IMAGES) >= LEAST - 1
    found = find_mislabels(check, towers, few)
    assert found is not None
    assert found.left_over == LEAST - 1
    assert any(f"{LEAST - 1} pairs were not scored" in note for note in Findings(check, found).notes)


def test_of_few_pairs_nothing_is_estimated(images: list[str]) -> None:
    few = images[: LEAST - 1]
    assert find_mislabels(check_data(listed(few, [f"a {n}" for n in range(len(few))])), NoisyTowers(0.1)) is None


@pytest.mark.parametrize(("share", "odd"), [(0.0, 0.0), (0.02, 0.0), (0.1, 0.0), (0.03, 0.01), (0.1, 0.02)])
def test_likelihood_is_the_share_of_wrong_pairs(share: float, odd: float) -> None:
    """Odd right pairs, which score as wrong ones, make each named pair less likely wrong."""
    random = np.random.default_rng(0)
    wrong, unusual = round(share * 10_000), round(odd * 10_000)
    scores = np.concatenate([random.normal(0, 1, wrong + unusual), random.normal(4, 1.2, 10_000 - wrong - unusual)])
    found = calibrate(scores, random.normal(0, 1, 5000), odd)
    assert abs(found.share - share) < 0.006
    named = found.likelihood >= 0.5
    if wrong:
        assert abs(named[:wrong].sum() / named.sum() - found.likelihood[named].mean()) < 0.1
    else:
        assert named.sum() <= 10


def test_the_named_pairs_come_with_how_far_the_classifier_can_be_trusted(images: list[str]) -> None:
    check = check_data(listed(images, with_wrong([f"class {'abcd'[number % 4]}" for number in range(IMAGES)])))
    found = find_mislabels(check, ClassTowers())
    assert found is not None
    assert found.agreement is not None
    assert 0.8 < found.agreement < 1
    assert any(
        f"gives {found.agreement:.0%} of the images their own class" in note for note in Findings(check, found).notes
    )
