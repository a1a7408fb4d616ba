"""Classifiers on frozen features: logistic regression and k nearest neighbours, on a train and a test part.

Shapes: N images, D embedding size, C classes, K neighbours.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_core.errors import DataError, MissingExtraError
from clip_core.scoring import FloatArray, IntArray, mean_interval, similarity, top_k

_CHUNK = 1024
_TEMPERATURE = 0.07  # of the votes of neighbours
_TRAINED_ON = 0.8  # of the images, where the set has no train split
_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # C of the logistic regression that are tried
_STEPS = 1000


@dataclass(frozen=True)
class Parts:
    """Features and labels of both parts, and one sentence that says where they are from."""

    train: FloatArray
    train_labels: IntArray
    test: FloatArray
    test_labels: IntArray
    said: str


@dataclass(frozen=True)
class FeatureScores:
    """Accuracy on the test part, fractions; `interval`: low and high of 95 %. `setting`: C, or K."""

    top1: float
    interval: tuple[float, float]
    mean_per_class: float
    setting: float
    train_images: int
    test_images: int


def split_features(images: FloatArray, labels: IntArray, seed: int) -> Parts:
    """80 % of the images of each class to train on, at random by the seed; a class of one image is not tested."""
    train = _stratified(labels, seed)
    said = (
        f"no train split: {train.sum():,} images, 80 % of each class by seed {seed}, train the classifiers on frozen "
        f"features, {(~train).sum():,} test them"
    )
    images = np.asarray(images)
    return Parts(images[train], labels[train], images[~train], labels[~train], said)


def linear_probe(parts: Parts, seed: int) -> FeatureScores:
    """Logistic regression by L-BFGS; C is the best of four on 20 % of the training part, which is then used whole.

    Source: the protocol of Radford et al. 2021, appendix A.3, with a coarser search.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError:
        raise MissingExtraError(
            'the linear probe needs scikit-learn; install it with: pip install "clip-tui[evaluate]"'
        ) from None
    _check(parts)

    def fitted(strength: float, features: FloatArray, labels: IntArray) -> "LogisticRegression":
        return LogisticRegression(C=strength, max_iter=_STEPS, random_state=seed).fit(features, labels)

    inner = _stratified(parts.train_labels, seed)
    best, strength = -1.0, _STRENGTHS[0]
    if (~inner).any():
        for each in _STRENGTHS:
            model = fitted(each, parts.train[inner], parts.train_labels[inner])
            score = float(model.score(parts.train[~inner], parts.train_labels[~inner]))
            if score > best:
                best, strength = score, each
    predicted = fitted(strength, parts.train, parts.train_labels).predict(parts.test)
    return _scores(parts, np.asarray(predicted), strength, seed)


def nearest_neighbours(parts: Parts, k: int, seed: int) -> FeatureScores:
    """The class with the most votes of the k nearest training images; a vote weighs exp(cosine / 0.07).

    Source: the weighted k-NN of Wu et al. 2018 that DINO uses (Caron et al. 2021, appendix F).
    """
    _check(parts)
    k = min(k, len(parts.train))
    classes = int(max(parts.train_labels.max(), parts.test_labels.max())) + 1
    predicted = np.empty(len(parts.test), np.int64)
    for start in range(0, len(parts.test), _CHUNK):
        rows, cosines = top_k(similarity(parts.test[start : start + _CHUNK], parts.train), k)
        weights = np.exp((cosines - cosines[:, :1]) / _TEMPERATURE)  # relative to the nearest: no overflow
        place = np.arange(len(rows))[:, None] * classes + parts.train_labels[rows]
        votes = np.bincount(place.ravel(), weights.ravel(), len(rows) * classes).reshape(len(rows), classes)
        predicted[start : start + len(rows)] = votes.argmax(axis=1)
    return _scores(parts, predicted, k, seed)


def _stratified(labels: IntArray, seed: int) -> NDArray[np.bool_]:
    """Whether each image is in the training part: 80 % of each class, at least one."""
    rng = np.random.default_rng(seed)
    train = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        train[rows[: max(1, round(_TRAINED_ON * len(rows)))]] = True
    return train


def _check(parts: Parts) -> None:
    if len(np.unique(parts.train_labels)) < 2 or not len(parts.test):
        raise DataError("a classifier on frozen features needs images of two classes to train on, and some to test.")


def _scores(parts: Parts, predicted: IntArray, setting: float, seed: int) -> FeatureScores:
    hits = predicted == parts.test_labels
    return FeatureScores(
        float(hits.mean()),
        mean_interval(hits.astype(np.float64), seed=seed),
        float(np.mean([hits[parts.test_labels == label].mean() for label in np.unique(parts.test_labels)])),
        setting,
        len(parts.train),
        len(parts.test),
    )
