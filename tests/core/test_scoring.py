import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_core import scoring
from clip_core.errors import ShapeError
from clip_core.scoring import (
    bootstrap_means,
    class_prototypes,
    l2_normalise,
    positive_ranks,
    recall_at_k,
    recall_interval,
    retrieval_scores,
    top_k,
    zero_shot_scores,
)


def naive_recall(images, texts, image_rows, text_rows, k):  # type: ignore[no-untyped-def]
    """The full matrix, a Python loop, and no ties."""
    matches = set(zip(image_rows.tolist(), text_rows.tolist(), strict=True))
    scores = images @ texts.T
    hits = [any((i, t) in matches for t in np.argsort(-scores[i])[:k]) for i in range(len(images))]
    return float(np.mean(hits))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 40), columns=st.integers(1, 40), k=st.sampled_from([1, 5, 10]))
def test_chunked_recall_equals_the_naive_full_matrix(seed: int, rows: int, columns: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    images = l2_normalise(rng.normal(size=(rows, 8)).astype(np.float32))
    captions = l2_normalise(rng.normal(size=(columns, 8)).astype(np.float32))
    extra = rng.integers(0, 20)
    image_rows = np.concatenate([np.arange(rows), rng.integers(0, rows, columns), rng.integers(0, rows, extra)])
    text_rows = np.concatenate([rng.integers(0, columns, rows), np.arange(columns), rng.integers(0, columns, extra)])
    scores = retrieval_scores(images, captions, image_rows, text_rows)
    assert scores[f"image_to_text_recall@{k}"] == naive_recall(images, captions, image_rows, text_rows, k)
    assert scores[f"text_to_image_recall@{k}"] == naive_recall(captions, images, text_rows, image_rows, k)
    for way in ("image_to_text", "text_to_image"):
        key = f"{way}_recall@1"
        assert 0 <= scores[f"{key}_low"] <= scores[key] <= scores[f"{key}_high"] <= 1
        assert scores[f"{key}_low"] < scores[f"{key}_high"] or 0 < scores[key] < 1


def test_chunks_do_not_change_the_ranks() -> None:
    rng = np.random.default_rng(0)
    count = scoring._CHUNK * 2 + 7
    images = l2_normalise(rng.normal(size=(count, 16)).astype(np.float32))
    captions = l2_normalise(images + rng.normal(size=images.shape).astype(np.float32) * 0.3)
    rows = np.arange(count)
    ranks = positive_ranks(images, captions, rows, rows)
    similarity = images @ captions.T
    assert (ranks == (similarity > np.diag(similarity)[:, None]).sum(axis=1)).all()


def test_a_collapsed_model_scores_nothing() -> None:
    same = np.ones((50, 4), np.float32) / 2
    rows = np.arange(50)
    assert recall_at_k(positive_ranks(same, same, rows, rows), 10) == 0.0


def test_a_query_without_a_positive_is_an_error() -> None:
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(ShapeError, match="positive"):
        positive_ranks(vectors, vectors, np.array([0, 1]), np.array([0, 1]))


def test_different_embedding_sizes_are_an_error() -> None:
    with pytest.raises(ShapeError, match="cannot be compared"):
        positive_ranks(np.eye(3, dtype=np.float32), np.eye(4, dtype=np.float32), np.arange(3), np.arange(3))


def test_zero_shot_counts_each_class_alike_in_its_mean() -> None:
    classes = np.eye(2, dtype=np.float32)
    images = np.array([[1, 0], [1, 0], [1, 0], [1, 0]], np.float32)
    scores = zero_shot_scores(images, classes, np.array([0, 0, 0, 1]))
    assert scores["zero_shot_top1"] == 0.75
    assert scores["zero_shot_mean_per_class"] == 0.5
    assert scores["zero_shot_top5"] == 1.0


def test_templates_are_averaged_class_by_class() -> None:
    embeddings = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32)  # two templates x two classes
    prototypes = class_prototypes(embeddings, 2)
    np.testing.assert_allclose(prototypes, [[1, 0], [2**-0.5, 2**-0.5]], rtol=1e-6)


def test_top_k_is_best_first_and_ties_go_to_the_lower_index() -> None:
    order, scores = top_k(np.array([[0.1, 0.5, 0.5, 0.2]], np.float32), 3)
    assert order.tolist() == [[1, 2, 3]]
    assert scores.shape == (1, 3)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), columns=st.integers(1, 60), k=st.integers(0, 20), nan=st.booleans())
def test_top_k_without_a_full_sort_is_the_full_sort(seed: int, columns: int, k: int, nan: bool) -> None:
    scores = np.random.default_rng(seed).integers(0, 6, (3, columns)).astype(np.float32)  # many ties
    if nan:
        scores[1, : columns - columns // 8] = np.nan
    order, values = top_k(scores, k)
    np.testing.assert_array_equal(order, np.argsort(-scores, axis=1, kind="stable")[:, :k])
    np.testing.assert_array_equal(values, np.take_along_axis(scores, order, axis=1))


def test_the_bootstrap_of_groups_agrees_with_drawing_each_group() -> None:
    rng = np.random.default_rng(3)
    groups = rng.permutation(np.repeat(np.arange(60), rng.integers(1, 6, 60)))
    values = (rng.random(60)[groups] > rng.random(len(groups))).astype(np.float64)
    members = [values[groups == group] for group in range(60)]
    naive = [np.concatenate([members[g] for g in rng.integers(0, 60, 60)]).mean() for _ in range(4000)]
    fast = bootstrap_means(values, groups, seed=1, rounds=20_000)
    assert fast.std() == pytest.approx(np.std(naive), rel=0.06)
    for share in (0.025, 0.5, 0.975):
        assert np.quantile(fast, share) == pytest.approx(np.quantile(naive, share), abs=0.012)


def test_captions_of_one_image_do_not_count_as_independent() -> None:
    ranks = np.repeat(np.arange(200) % 2, 5) * 3  # every image's five captions hit or miss together
    single, grouped = recall_interval(ranks, 1), recall_interval(ranks, 1, np.repeat(np.arange(200), 5))
    assert grouped == recall_interval(ranks, 1, np.repeat(np.arange(200), 5))
    assert 2.0 < (grouped[1] - grouped[0]) / (single[1] - single[0]) < 2.5  # sqrt(5)
    assert grouped[0] == pytest.approx(0.5 - 1.96 * 0.5 / 200**0.5, abs=0.01)


def test_the_interval_of_a_perfect_recall_depends_on_the_number_of_images() -> None:
    few, many = np.zeros(5, np.int64), np.zeros(1000, np.int64)
    assert recall_interval(few, 1) == (pytest.approx(0.478, abs=1e-3), 1.0)
    assert recall_interval(many, 1)[0] > 0.996
    assert recall_interval(few + 9, 1) == (0.0, pytest.approx(0.522, abs=1e-3))
