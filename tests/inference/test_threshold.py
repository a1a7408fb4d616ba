"""The cosine from which an image and a text match, and the class "none of these" that it makes."""

import json
from pathlib import Path

import numpy as np
import pytest

from clip_core.cli.infer import main
from clip_core.errors import UsageError
from clip_core.inference.bundle import read_manifest
from clip_core.inference.clip import CLIPInference
from clip_core.inference.threshold import NONE_OF_THESE, calibrate
from clip_core.run.paths import RunPaths
from clip_core.run.records import ValidationPair, ValidationPairs
from clip_core.scoring import best_threshold, similarity
from tests.inference.test_bundle import edit_manifest
from tests.models import images_of

NAMES = ["red circle", "blue square"]


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_scores_that_can_be_told_apart_are_parted_halfway() -> None:
    assert best_threshold(array(0.5, 0.6, 0.9), array(0.1, 0.3)) == pytest.approx((0.4, 1, 1))


def test_the_threshold_has_the_best_f1_of_all_and_equal_scores_stay_together() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        matching = generator.integers(3, 9, 15).astype(np.float32) / 10
        others = generator.integers(0, 7, 60).astype(np.float32) / 10

        def judged(value: float, matching: np.ndarray = matching, others: np.ndarray = others) -> tuple[float, float]:
            hits, false = (matching >= value).mean(), (others >= value).mean()
            return (hits / (hits + false) if hits + false else 0.0), hits

        value, precision, recall = best_threshold(matching, others)
        assert (precision, recall) == pytest.approx(judged(value))
        f1 = [2 * p * r / (p + r) if p + r else 0 for p, r in map(judged, np.arange(-0.05, 1, 0.1))]
        assert 2 * precision * recall / (precision + recall) == pytest.approx(max(f1))


def test_the_bundle_holds_the_threshold_of_its_runs_validation_pairs(tiny_run: Path, tiny_bundle: Path) -> None:
    found = read_manifest(tiny_bundle).threshold
    assert found is not None
    clip = CLIPInference(tiny_bundle)
    pairs = ValidationPairs.read(RunPaths(tiny_run).validation).pairs
    captions = list(dict.fromkeys(pair.caption for pair in pairs))
    cosines = similarity(
        clip.encoder.encode_images([pair.image for pair in pairs]), clip.encoder.encode_texts(captions)
    )
    matching = np.array([[pair.caption == caption for caption in captions] for pair in pairs])
    assert (found.pairs, found.others) == (matching.sum(), (~matching).sum())
    accepted = cosines >= found.value
    hits, false = accepted[matching].mean(), accepted[~matching].mean()
    assert found.recall == pytest.approx(hits, abs=0.03)  # a cosine at the threshold may round to either side
    assert found.precision == pytest.approx(hits / (hits + false), abs=0.03)


def test_a_run_without_a_bundle_chooses_it_when_it_is_asked_for(tiny_run: Path, tiny_bundle: Path) -> None:
    clip = CLIPInference(tiny_run, "torch", "cpu")
    assert clip.encoder.about.threshold is None
    assert clip.threshold is not None
    stored = read_manifest(tiny_bundle).threshold
    assert stored is not None
    assert clip.threshold.value == pytest.approx(stored.value, abs=1e-4)


def test_unreadable_images_and_too_few_pairs_give_none(tiny_run: Path) -> None:
    clip = CLIPInference(tiny_run, "onnx")
    pairs = ValidationPairs.read(RunPaths(tiny_run).validation).pairs
    found = calibrate(clip.encoder, [*pairs[:12], ValidationPair(image="/nowhere.png", caption="x")])
    assert found is not None
    assert found.pairs >= 12
    assert calibrate(clip.encoder, pairs[:9]) is None
    assert calibrate(clip.encoder, [pairs[0]] * 20) is None
    assert calibrate(clip.encoder, []) is None


@pytest.mark.parametrize(("value", "place"), [(0.9999, 0), (-0.9999, 2)])
def test_none_of_these_comes_first_where_no_class_reaches_the_threshold(
    own_bundle: Path, tiny_run: Path, value: float, place: int
) -> None:
    edit_manifest(own_bundle, lambda manifest: manifest["threshold"].update(value=value))
    clip, image = CLIPInference(own_bundle), images_of(tiny_run)[0]
    ranked = clip.zero_shot_classification(image, NAMES, "{}", none_of_these=True)
    assert [name for name, _ in ranked].index(NONE_OF_THESE) == place
    assert sum(share for _, share in ranked) == pytest.approx(1, abs=1e-5)
    shares, cosines = dict(ranked), clip.image_text_similarity(image, NAMES)
    if place == 0:
        gap = clip.encoder.about.logit_scale * (cosines[0] - cosines[1])
        assert np.log(shares[NAMES[0]] / shares[NAMES[1]]) == pytest.approx(gap, abs=0.05)


def test_a_model_without_validation_pairs_says_why_it_cannot(own_bundle: Path, tiny_run: Path) -> None:
    edit_manifest(own_bundle, lambda manifest: manifest.update(threshold=None))
    with pytest.raises(UsageError, match="no validation pairs"):
        CLIPInference(own_bundle).zero_shot_classification(images_of(tiny_run)[0], NAMES, none_of_these=True)


def test_the_command_says_which_texts_match_and_that_none_does(
    own_bundle: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, image = CLIPInference(own_bundle), images_of(tiny_run)[0]
    low, high = sorted(clip.image_text_similarity(image, NAMES).tolist())
    edit_manifest(own_bundle, lambda manifest: manifest["threshold"].update(value=(low + high) / 2))
    asked = ["--model", str(own_bundle), "--image", str(image)]
    assert main(["similarity", *asked, "--texts", *NAMES]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[1] for line in lines[1:3]) == ["match", "no"]
    assert lines[-1].startswith("threshold ")
    assert "precision" in lines[-1]
    assert main(["similarity", *asked, "--texts", *NAMES, "--json"]) == 0
    assert sorted(json.loads(capsys.readouterr().out)["matches"]) == [False, True]
    edit_manifest(own_bundle, lambda manifest: manifest["threshold"].update(value=0.9999))
    assert main(["classification", *asked, "--classes", *NAMES, "--none-of-these"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(NONE_OF_THESE)
    assert lines[-1].startswith(f"{NONE_OF_THESE}: threshold +0.9999")
