"""Exact nearest rows of many: a scan of int8 codes, then the float32 cosines of the few rows that can be among them.

A row g is stored as the int8 code c of its difference from the mean, in a random orthogonal basis R, where no
dimension is an outlier (the basis of RaBitQ and of QuIP#, for the same reason):

    g = mean + step * R c + e         |e| is stored with the row
    R' q = query_step * p + f         of a query q: int8 p, remainder f
    q.g = q.mean + step * query_step * p.c  +  step * f.c + q.e
                   the scan, p.c in integers       |remainder| <= |f| max|step * c| + |q| |e|   (Cauchy-Schwarz)

So a row whose p.c is too small for this bound to lift it over the k-th best is not among the k best, for certain;
of all others the float32 cosine is computed. Rounding of float32 is part of the bound.

Shapes: N rows, D embedding size, Q queries, B rows of a block, k wanted.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip_core.inference.encoder import cores
from clip_core.scoring import FloatArray, IntArray, top_k

Codes = NDArray[np.int8]

BLOCK = 2048  # B: rows whose products with a batch of queries stay in the second-level cache
FEWEST = 16_384  # rows; of fewer, the float32 product is as fast
QUERIES = 128  # queries that are compared in one pass over the codes: memory does not grow with Q

_FEW_QUERIES = 32  # for fewer, several blocks at a time are compared
_GROUP = 16  # rows of a block of which only the best is looked at first
_SAMPLE = 65_536  # rows that the mean and the step are computed of
_WIDTHS = (3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0)  # largest code, in standard deviations; the best of these is taken
_NO_ROW = int(np.iinfo(np.int32).min)
_FLOAT32 = 2.0**-24  # unit roundoff
# An ONNX file of one node, MatMulInteger(a, b) -> c; the test makes the same bytes with onnx, which is not needed here.
_PRODUCT = (
    b'\x08\x08:b\n\x18\n\x01a\n\x01b\x12\x01c"\rMatMulInteger\x12\x01gZ\x15\n\x01a\x12\x10\n\x0e\x08\x02\x12\n\n\x03'
    b"\x12\x01q\n\x03\x12\x01dZ\x15\n\x01b\x12\x10\n\x0e\x08\x03\x12\n\n\x03\x12\x01d\n\x03\x12\x01nb\x15\n\x01c\x12"
    b"\x10\n\x0e\x08\x06\x12\n\n\x03\x12\x01q\n\x03\x12\x01nB\x04\n\x00\x10\r"
)


@dataclass(frozen=True)
class CompactRows:
    """int8 codes of N rows, and what bounds the error of a product with them.

    Attributes:
        codes: int8 (ceil(N / B), D, B); the last block is filled up with zeros.
        sums: of each row's code, int32 (N,).
        errors: |e| of each row, float32 (N,).
        mean, basis: float32 (D,) and (D, D).
        step: the difference of two codes that are one apart.
        longest: the largest |step * c| of a row.
        length: the largest |g| of a row.
    """

    codes: Codes
    sums: NDArray[np.int32]
    errors: FloatArray
    mean: FloatArray
    basis: FloatArray
    step: float
    longest: float
    length: float

    def __len__(self) -> int:
        return len(self.errors)


class Found(NamedTuple):
    """The k best of each query, best first, ties by the lower row; (Q, k) each, k at most the number of rows."""

    rows: IntArray
    scores: FloatArray


def compact(rows: FloatArray, codes: Codes | None = None) -> CompactRows:
    """The codes of float32 rows.  (N, D), in one pass; `codes` may be a memory-mapped array to fill.

    Raises:
        ValueError: if a row is not finite.
    """
    count, size = rows.shape
    sample = np.asarray(rows[:: max(1, count // _SAMPLE)], np.float32)
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0].astype(np.float32)
    step = _best_step((sample - mean) @ basis)
    if codes is None:
        codes = np.zeros(codes_shape(count, size), np.int8)
    errors, sums = np.empty(count, np.float32), np.empty(count, np.int32)
    longest = length = 0.0
    for block, start in enumerate(range(0, count, BLOCK)):
        given = np.asarray(rows[start : start + BLOCK], np.float32)
        if not np.isfinite(given).all():
            raise ValueError("an embedding is not finite")
        turned = (given - mean) @ basis
        code = np.clip(np.rint(turned / step), -127, 127)
        errors[start : start + BLOCK] = np.linalg.norm(turned - step * code, axis=1)
        sums[start : start + BLOCK] = code.sum(axis=1)
        longest = max(longest, step * float(np.linalg.norm(code, axis=1).max()))
        length = max(length, float(np.linalg.norm(given, axis=1).max()))
        codes[block, :, : len(given)] = code.T.astype(np.int8)
    return CompactRows(codes, sums, errors, mean, basis, step, longest, length)


def codes_shape(count: int, size: int) -> tuple[int, int, int]:
    return -(-count // BLOCK), size, BLOCK


def nearest(
    rows: FloatArray, queries: FloatArray, k: int, codes: CompactRows | None = None, dead: IntArray | None = None
) -> Found:
    """The k rows with the largest dot product with each query, exactly.

    Args:
        rows: float32 (N, D), may be memory-mapped.
        queries: float32 (Q, D), finite.
        codes: of the first len(codes) rows; without them, or where k is a large part of the rows, float32 is scanned.
        dead: rows that do not count, in ascending order.
    """
    dead = np.empty(0, np.int64) if dead is None else dead
    rows, k = np.asarray(rows), min(k, len(rows) - len(dead))
    if k < 1 or not len(queries):
        return _nothing(len(queries), max(k, 0))
    if codes is None or not len(codes) or k * _GROUP * 4 > len(codes):
        return _scan_floats(rows, queries, k, 0, dead)
    found = [
        _scan_codes(rows, queries[start : start + QUERIES], k, codes, dead) for start in range(0, len(queries), QUERIES)
    ]
    best = Found(*(np.concatenate(part) for part in zip(*found, strict=True)))
    return best if len(codes) == len(rows) else merge(best, _scan_floats(rows, queries, k, len(codes), dead), k)


def merge(first: Found, second: Found, k: int) -> Found:
    """The k best of two results; ties by the order given."""
    rows = np.concatenate([first.rows, second.rows], axis=1)
    scores = np.concatenate([first.scores, second.scores], axis=1)
    order, best = top_k(scores, k)
    return Found(np.take_along_axis(rows, order, axis=1), best)


def _nothing(queries: int, k: int) -> Found:
    return Found(np.empty((queries, k), np.int64), np.empty((queries, k), np.float32))


def _scan_floats(rows: FloatArray, queries: FloatArray, k: int, first: int, dead: IntArray) -> Found:
    """Without codes: the rows from `first` on, by blocks, so that memory grows with Q * k only."""
    best = _nothing(len(queries), 0)
    for start in range(first, len(rows), 4 * BLOCK):
        scores = np.asarray(queries @ np.asarray(rows[start : start + 4 * BLOCK]).T, np.float32)
        low, high = np.searchsorted(dead, [start, start + scores.shape[1]])
        scores[:, dead[low:high] - start] = -np.inf
        order, values = top_k(scores, min(k, scores.shape[1]))
        best = merge(best, Found(order + start, values), min(k, best.rows.shape[1] + order.shape[1]))
    keep = np.isfinite(best.scores).all(axis=0) if first == 0 else slice(None)
    return Found(best.rows[:, keep][:, :k], best.scores[:, keep][:, :k])


class _Query(NamedTuple):
    """A batch of queries as the scan needs it."""

    floats: FloatArray  # (Q, D)
    codes: NDArray[np.uint8]  # p + offset, (Q, D)
    shift: NDArray[np.float64]  # q.mean, (Q, 1)
    unit: NDArray[np.float64]  # step * query_step, (Q, 1): the score of one integer
    length: NDArray[np.float64]  # |q|, (Q, 1)
    remainder: NDArray[np.float64]  # the part of the bound that no row changes, (Q, 1)


def _prepare(queries: FloatArray, codes: CompactRows, offset: int) -> _Query:
    turned = queries.astype(np.float64) @ codes.basis.astype(np.float64)
    step = np.maximum(np.abs(turned).max(axis=1, keepdims=True) / (offset - 1), 1e-30)
    code = np.rint(turned / step)
    length = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    # Float32 dot products and the float32 basis are off by at most about D roundoffs of |q| |g| each; taken fourfold.
    rounding = 4 * queries.shape[1] * _FLOAT32 * length * (codes.length + codes.longest)
    remainder = np.linalg.norm(turned - step * code, axis=1, keepdims=True) * codes.longest + rounding
    shift = queries.astype(np.float64) @ codes.mean.astype(np.float64)[:, None]
    return _Query(queries, (code + offset).astype(np.uint8), shift, step * codes.step, length, remainder)


class _Candidates(NamedTuple):
    """Rows that may be among the best of their query; (M,) each."""

    query: IntArray
    row: IntArray
    product: NDArray[np.int32]


def _scan_codes(rows: FloatArray, queries: FloatArray, k: int, codes: CompactRows, dead: IntArray) -> Found:
    product = _integer_product()
    scan = _Scan(rows, codes, _prepare(queries, codes, product.offset), k, dead, product)
    blocks = np.arange(len(codes.codes))
    workers = max(1, min(cores(), len(blocks) // 8))
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(scan.candidates, np.array_split(blocks, workers)))
    candidates, _ = scan.prune(parts)
    ends = np.searchsorted(candidates.query, np.arange(len(queries) + 1))
    best = _nothing(len(queries), k)
    for number, (low, high) in enumerate(pairwise(ends)):
        possible = np.sort(candidates.row[low:high])
        order, values = top_k((rows[possible] @ queries[number])[None], k)
        best.rows[number], best.scores[number] = possible[order[0]], values[0]
    return best


class _Scan(NamedTuple):
    """One batch of queries against all codes."""

    rows: FloatArray
    codes: CompactRows
    query: _Query
    k: int
    dead: IntArray
    product: "_IntegerProduct"

    def candidates(self, blocks: IntArray) -> _Candidates:
        """Rows of these blocks that the bound does not put below the k-th best of these blocks."""
        floor = np.full((len(self.query.codes), 1), -np.inf)  # the k-th best score so far, or something below it
        found: list[_Candidates] = []
        several = max(1, _FEW_QUERIES // len(floor))  # of few queries the steps below cost more than the products
        for turn, first in enumerate(range(0, len(blocks), several)):
            start = int(blocks[first]) * BLOCK
            products = [self._products(int(block)) for block in blocks[first : first + several]]
            groups = np.concatenate(products, axis=1).reshape(len(floor), _GROUP, -1)
            best = groups.max(axis=1)  # a group: every 128th row, where it is one block
            errors = self.codes.errors[start : start + len(products) * BLOCK]
            bound = self.query.remainder + self.query.length * float(errors.max())
            if turn == 0 and self.k <= best.shape[1]:
                kth = np.partition(best, -self.k, axis=1)[:, -self.k, None]
                floor = self.query.shift + self.query.unit * kth - bound
            # Exact in float64 but for the last bit, which the rounding in the bound covers.
            least = np.maximum((floor - bound - self.query.shift) / self.query.unit, _NO_ROW + 1)
            which, group = np.nonzero(best >= least)
            values = groups[which, :, group]  # (M, _GROUP)
            hit, place = np.nonzero(values >= least[which])
            row = start + place * groups.shape[2] + group[hit]
            found.append(_Candidates(which[hit], row, values[hit, place]))
            if turn & (turn + 1) == 0 and turn.bit_length() % 2 == 0:  # after 1, 4, 16, 64, ... turns
                kept, floor = self.prune(found)
                found = [kept]
        return self.prune(found)[0]

    def prune(self, found: list[_Candidates]) -> tuple[_Candidates, NDArray[np.float64]]:
        """The candidates, by query, that may reach the float32 score of the k-th best; and that score, (Q, 1)."""
        query, row, product = (np.concatenate(part) for part in zip(*found, strict=True))
        order = np.lexsort((-product, query))
        query, row, product = query[order], row[order], product[order]
        ends = np.searchsorted(query, np.arange(len(self.query.codes) + 1))
        if (np.diff(ends) < self.k).any():  # not yet k rows
            return _Candidates(query, row, product), np.full((len(self.query.codes), 1), -np.inf)
        top = row[ends[:-1, None] + np.arange(self.k)]  # (Q, k)
        floor = np.empty((len(top), 1))
        for number, one in enumerate(top):
            floor[number] = (self.rows[one] @ self.query.floats[number]).min()
        score = product * self.query.unit[query, 0] + self.query.shift[query, 0]
        bound = self.query.remainder[query, 0] + self.query.length[query, 0] * self.codes.errors[row]
        kept = score + bound >= floor[query, 0]
        return _Candidates(query[kept], row[kept], product[kept]), floor

    def _products(self, block: int) -> NDArray[np.int32]:
        """p.c of each query and row of the block, (Q, B); the least integer where there is no row or a dead one."""
        start = block * BLOCK
        count = min(BLOCK, len(self.codes) - start)
        products = self.product(self.query.codes, self.codes.codes[block])
        products[:, :count] -= self.product.offset * self.codes.sums[start : start + count]
        products[:, count:] = _NO_ROW
        low, high = np.searchsorted(self.dead, [start, start + count])
        products[:, self.dead[low:high] - start] = _NO_ROW
        return products


def _best_step(turned: FloatArray) -> float:
    """The step with the least error, clipping included, of the worst rows: a block is bounded by its worst."""
    deviation = float(np.sqrt(np.mean(np.square(turned, dtype=np.float64)))) or 1.0
    part = turned[: 4 * BLOCK]

    def error(step: float) -> float:
        errors = np.linalg.norm(part - step * np.clip(np.rint(part / step), -127, 127), axis=1)
        return float(np.mean([errors[start : start + BLOCK].max() for start in range(0, len(part), BLOCK)]))

    return min((width * deviation / 127 for width in _WIDTHS), key=error)


class _IntegerProduct:
    """uint8 (Q, D) times int8 (D, B) in int32: numpy has no fast one, ONNX Runtime has one for each kind of CPU.

    Attributes:
        offset: what makes the codes of a query unsigned, one more than the largest of them. Where the CPU adds pairs
            of products in 16 bits (AVX2 without VNNI), sums of 8 bits each saturate, silently; this is found by trying.
    """

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # the blocks are shared out among threads here
        self._session: Any = onnxruntime.InferenceSession(_PRODUCT, options, providers=["CPUExecutionProvider"])
        most = self(np.full((16, 64), 255, np.uint8), np.full((64, 64), 127, np.int8))
        least = self(np.full((16, 64), 255, np.uint8), np.full((64, 64), -127, np.int8))
        self.offset = 128 if (most == 64 * 255 * 127).all() and (least == -64 * 255 * 127).all() else 64

    def __call__(self, queries: NDArray[np.uint8], codes: Codes) -> NDArray[np.int32]:
        products: NDArray[np.int32] = self._session.run(None, {"a": queries, "b": codes})[0]
        return products


@cache
def _integer_product() -> _IntegerProduct:
    return _IntegerProduct()
