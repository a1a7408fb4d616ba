"""Every figure against scikit-learn, scipy or a naive formula on the same embeddings."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from clip_core.data.dataset import PairSet
from clip_core.inference.evaluation.classification import average_precision, calibration, classify, zero_shot
from clip_core.inference.evaluation.compare import compare, mcnemar
from clip_core.inference.evaluation.features import Parts, linear_probe, nearest_neighbours, split_features
from clip_core.inference.evaluation.retrieval import retrieve
from clip_core.inference.evaluation.templates import IMAGENET
from clip_core.scoring import l2_normalise

CLASSES, IMAGES, SCALE = 9, 1500, 20.0


@pytest.fixture(scope="module")
def embedded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    classes = l2_normalise(rng.normal(size=(CLASSES, 12)).astype(np.float32))
    labels = rng.choice(CLASSES, IMAGES, p=np.arange(1, CLASSES + 1) / 45)
    images = l2_normalise((classes[labels] + 0.5 * rng.normal(size=(IMAGES, 12))).astype(np.float32))
    return images, classes, labels


def test_classification_equals_scikit_learn(embedded: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    images, classes, labels = embedded
    names = [f"class {n}" for n in range(CLASSES)]
    precisions = average_precision(images, classes, np.arange(IMAGES), labels)
    found = zero_shot(classify(images, classes, labels, SCALE), names, precisions, bins=15, seed=0)
    logits = images @ classes.T
    predicted = logits.argmax(axis=1)
    assert found.top1 == pytest.approx((predicted == labels).mean(), abs=1e-12)
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5), abs=1e-12)
    assert found.mean_per_class == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    matrix = np.zeros((CLASSES, CLASSES), int)
    for true, guess, count in found.confusion:
        matrix[true, guess] = count
    assert np.array_equal(matrix, confusion_matrix(labels, predicted, labels=range(CLASSES)))
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, labels=range(CLASSES))
    for number, row in enumerate(found.per_class):
        assert (row.precision, row.recall, row.f1) == pytest.approx((precision[number], recall[number], f1[number]))
        assert row.images == support[number]
        expected = average_precision_score(labels == number, logits[:, number])
        assert row.average_precision == pytest.approx(expected, abs=1e-6)
        others = matrix[number].copy()
        others[number] = 0
        assert row.confused == others.max()
        assert row.confused_with == names[int(others.argmax())]


def test_average_precision_takes_equal_scores_together_and_multi_label_images_for_each_class() -> None:
    images = l2_normalise(np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32))
    rows, classes = np.array([0, 0, 3]), np.array([0, 1, 1])
    found = average_precision(images, np.eye(3, 2, dtype=np.float32), rows, classes)
    for number in range(2):
        wanted = np.isin(np.arange(4), rows[classes == number])
        assert found[number] == pytest.approx(average_precision_score(wanted, images[:, number]))
    assert np.isnan(found[2])


def test_ece_is_the_weighted_gap_of_the_bins_and_certainty_is_in_the_last() -> None:
    rng = np.random.default_rng(0)
    confidence = np.append(rng.random(500), [1.0, 1.0, 0.0]).astype(np.float32)
    hits = np.append(rng.random(501) < confidence[:501], [False, True])
    expected = 0.0
    for low, high in zip(np.arange(10) / 10, np.arange(1, 11) / 10, strict=True):
        inside = (confidence > low) & (confidence <= high) if low else confidence <= high
        expected += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    found = calibration(confidence, hits, bins=10)
    assert found.ece == pytest.approx(expected, abs=1e-6)
    assert sum(each.images for each in found.bins) == 503
    assert found.over == pytest.approx(confidence.mean() - hits.mean(), abs=1e-6)
    assert calibration(np.ones(4, np.float32), np.array([True, True, True, False]), 15).ece == pytest.approx(0.25)


def test_retrieval_equals_the_naive_full_matrix_with_several_captions() -> None:
    rng = np.random.default_rng(2)
    images = l2_normalise(rng.normal(size=(40, 8)).astype(np.float32))
    texts = l2_normalise((np.repeat(images, 5, axis=0) + 0.4 * rng.normal(size=(200, 8))).astype(np.float32))
    rows = np.repeat(np.arange(40), 5)
    found, ranks = retrieve(images, texts, PairSet([], [], rows, np.arange(200)), seed=0)
    scores = images @ texts.T
    own = rows[None, :] == np.arange(40)[:, None]
    for k in (1, 5, 10):
        hits = np.take_along_axis(own, np.argsort(-scores, axis=1)[:, :k], axis=1).any(axis=1)
        assert found.image_to_text.recall[k] == hits.mean()
        hits = np.take_along_axis(own.T, np.argsort(-scores.T, axis=1)[:, :k], axis=1).any(axis=1)
        assert found.text_to_image.recall[k] == hits.mean()
        low, high = found.text_to_image.intervals[k]
        assert low <= hits.mean() <= high
    precision = np.mean([average_precision_score(own[n], scores[n]) for n in range(40)])
    assert found.image_to_text.mean_average_precision == pytest.approx(precision, abs=1e-6)
    precision = np.mean([average_precision_score(own[:, n], scores[:, n]) for n in range(200)])
    assert found.text_to_image.mean_average_precision == pytest.approx(precision, abs=1e-6)
    assert np.array_equal(ranks.caption_images, rows)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    for gained, lost in [(0, 0), (1, 0), (3, 12), (7, 7), (40, 61), (900, 1100)]:
        expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_a_comparison_counts_what_changed_and_its_interval_is_of_pairs() -> None:
    first = np.arange(1000) < 600
    second = np.arange(1000) < 630  # the same queries and thirty more
    found = compare("zero_shot_top1", first, second)
    assert (found.gained, found.lost, found.difference) == (30, 0, pytest.approx(0.03))
    assert 0.019 < found.interval[0] < 0.023
    assert 0.037 < found.interval[1] < 0.042
    assert found.p_value == pytest.approx(2 * 0.5**30)


def test_frozen_features_are_classified_as_by_scikit_learn(
    embedded: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    images, _, labels = embedded
    parts = split_features(images, labels, seed=0)
    assert abs(len(parts.train) - 0.8 * IMAGES) < CLASSES
    assert len(parts.train) + len(parts.test) == IMAGES
    assert not {row.tobytes() for row in parts.train} & {row.tobytes() for row in parts.test}
    small = Parts(parts.train[:600], parts.train_labels[:600], parts.test, parts.test_labels, "")
    near = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / 0.07)
    ).fit(small.train, small.train_labels)
    expected = near.score(small.test, small.test_labels)
    assert nearest_neighbours(small, 7, 0).top1 == pytest.approx(expected, abs=1e-9)
    probe = linear_probe(small, 0)
    model = LogisticRegression(C=probe.setting, max_iter=1000).fit(small.train, small.train_labels)
    assert probe.top1 == pytest.approx(model.score(small.test, small.test_labels))
    assert probe.setting < 100  # noisy features need regularisation


def test_the_templates_are_those_of_clip() -> None:
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    assert [template("{}") for template in OPENAI_IMAGENET_TEMPLATES] == IMAGENET
