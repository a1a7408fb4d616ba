"""The k nearest by int8 codes are the k nearest of all, whatever the rows are like."""

from typing import Any

import numpy as np
import onnx
import pytest

from clip_core.inference import exact_search
from clip_core.inference.exact_search import BLOCK, CompactRows, _integer_product, compact, nearest
from clip_core.scoring import FloatArray, l2_normalise

D = 48


def random(rng: np.random.Generator, count: int) -> FloatArray:
    return rng.standard_normal((count, D)).astype(np.float32)


def clustered(rng: np.random.Generator, count: int) -> FloatArray:
    """Few dense clusters away from the origin, and dimensions with values ten times as large, as CLIP has them."""
    centres = random(rng, 20)
    scale = np.ones(D, np.float32)
    scale[[3, 17]] = 10
    return ((centres[rng.integers(0, 20, count)] + 0.05 * random(rng, count) + 1) * scale).astype(np.float32)


def equal(rng: np.random.Generator, count: int) -> FloatArray:
    return np.repeat(random(rng, 1), count, axis=0)


def few_outliers(rng: np.random.Generator, count: int) -> FloatArray:
    """Rows of other lengths: 100 times as long, and zero."""
    rows = random(rng, count)
    rows[::997] *= 100
    rows[5] = 0
    return rows


@pytest.fixture(scope="module", params=[random, clustered, equal, few_outliers])
def rows(request: pytest.FixtureRequest) -> FloatArray:
    made: FloatArray = request.param(np.random.default_rng(1), 4 * BLOCK + 77)
    return made if request.param is few_outliers else l2_normalise(made)


@pytest.fixture(scope="module")
def codes(rows: FloatArray) -> CompactRows:
    return compact(rows)


def check(rows: FloatArray, queries: FloatArray, k: int, codes: CompactRows | None, dead: list[int]) -> None:
    """Against all products in float64: every found score is right, and no row that is better was missed."""
    found = nearest(rows, queries, k, codes, np.array(dead, np.int64))
    truth = queries.astype(np.float64) @ rows.astype(np.float64).T
    truth[:, dead] = -np.inf
    best = -np.sort(-truth, axis=1)[:, :k]
    size = float(np.abs(best).max())
    np.testing.assert_allclose(found.scores, best, atol=2e-6 * size)
    np.testing.assert_allclose(np.take_along_axis(truth, found.rows, axis=1), best, atol=2e-6 * size)
    assert all(len(set(row)) == found.rows.shape[1] for row in found.rows.tolist())
    assert not set(dead) & set(found.rows.reshape(-1).tolist())


@pytest.mark.parametrize("k", [1, 10, 100])
def test_codes_find_exactly_the_nearest(rows: FloatArray, codes: CompactRows, k: int) -> None:
    queries = np.concatenate([rows[::2000], l2_normalise(random(np.random.default_rng(2), 3))])
    check(rows, queries, k, codes, [])


def test_dead_rows_and_rows_that_came_after_the_codes_count_as_they_should(rows: FloatArray) -> None:
    queries = rows[[0, BLOCK, len(rows) - 1]]
    dead = sorted({0, 1, BLOCK - 1, BLOCK, len(rows) - 1, *range(3000, 3500)})
    check(rows, queries, 10, compact(rows[: 3 * BLOCK + 5]), dead)


def test_without_codes_the_answer_is_the_same() -> None:
    rows = random(np.random.default_rng(3), 9 * BLOCK)
    check(rows, rows[:5], 7, None, [0, 8 * BLOCK])


def test_more_than_there_are_gives_all_of_them() -> None:
    rows = random(np.random.default_rng(3), 20)
    assert nearest(rows, rows[:2], 50, None, np.array([4])).rows.shape == (2, 19)
    assert nearest(rows[:0], rows[:2], 5).rows.shape == (2, 0)


def test_the_bound_holds_for_every_row(rows: FloatArray, codes: CompactRows) -> None:
    product = _integer_product()
    queries = l2_normalise(random(np.random.default_rng(4), 8))
    prepared = exact_search._prepare(queries, codes, product.offset)
    scan = exact_search._Scan(rows, codes, prepared, 1, np.array([], np.int64), product)
    about = np.concatenate([scan._products(block) for block in range(len(codes.codes))], axis=1)[:, : len(rows)]
    error = np.abs(prepared.shift + prepared.unit * about - queries.astype(np.float64) @ rows.astype(np.float64).T)
    assert (error <= prepared.remainder + prepared.length * codes.errors).all()


def test_a_cpu_whose_sums_saturate_at_16_bits_gets_smaller_codes(
    rows: FloatArray, codes: CompactRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_integer_product(), "offset", 64)
    assert exact_search._prepare(rows[:9], codes, 64).codes.max() <= 127  # 2 * 127 * 127 < 2 ** 15
    check(rows, rows[:3], 10, codes, [])


def test_the_graph_is_what_onnx_makes_of_it() -> None:
    def value(name: str, kind: int, *shape: str) -> Any:
        return onnx.helper.make_tensor_value_info(name, kind, shape)

    kinds = onnx.TensorProto
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "g",
        [value("a", kinds.UINT8, "q", "d"), value("b", kinds.INT8, "d", "n")],
        [value("c", kinds.INT32, "q", "n")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    assert onnx.load_from_string(exact_search._PRODUCT) == model


def test_rows_that_are_not_finite_are_refused() -> None:
    rows = random(np.random.default_rng(3), 20)
    rows[7, 7] = np.nan
    with pytest.raises(ValueError, match="finite"):
        compact(rows)
