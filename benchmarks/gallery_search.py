"""Exact top-10 of a gallery by a batch of queries, alternating with FAISS's flat index.

    pip install "clip-tui[bench]"
    python -m benchmarks.gallery_search [ROWS ...]    (default: 100000 1000000)

Rows: random unit vectors, and clustered ones off the origin with two dimensions ten times as large, as CLIP's
embeddings are. Both use every core. Recall: how many of the ten are at least as near as the tenth by float64 products,
less 1e-6. Medians; CPU time is that of the whole process, which other work on the machine changes less.
"""

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import faiss
import numpy as np

from benchmarks.train_run import header, row
from clip_core.inference.exact_search import compact, nearest
from clip_core.scoring import FloatArray, IntArray, l2_normalise

D, K = 512, 10
BATCHES = (100, 1)
ROUNDS, ROUNDS_OF_LARGE = 7, 3  # of 500,000 rows and more


class Took(NamedTuple):
    wall: float
    cpu: float


def random_rows(rng: np.random.Generator, count: int) -> FloatArray:
    return l2_normalise(rng.standard_normal((count, D), dtype=np.float32))


def clustered_rows(rng: np.random.Generator, count: int) -> FloatArray:
    centres = np.random.default_rng(7).standard_normal((1000, D), dtype=np.float32) + 1
    rows = rng.standard_normal((count, D), dtype=np.float32)
    rows *= 0.7
    rows += centres[rng.integers(0, len(centres), count)]
    rows[:, [7, 99]] *= 10
    return l2_normalise(rows)


def measure(work: Callable[[], IntArray]) -> tuple[Took, IntArray]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return Took(time.perf_counter() - wall, time.process_time() - cpu), found


def recall(rows: FloatArray, queries: FloatArray, found: IntArray) -> float:
    """Against float64, by blocks of rows."""
    best = np.full((len(queries), K), -np.inf)
    for start in range(0, len(rows), 16_384):
        scores = queries.astype(np.float64) @ rows[start : start + 16_384].T.astype(np.float64)
        best = np.partition(np.concatenate([best, scores], axis=1), -K, axis=1)[:, -K:]
    scores = np.einsum("qd,qkd->qk", queries.astype(np.float64), rows[found].astype(np.float64))
    return float((scores >= best.min(axis=1, keepdims=True) - 1e-6).mean())


def compare(name: str, count: int, make: Callable[[np.random.Generator, int], FloatArray]) -> None:
    rng = np.random.default_rng(0)
    rows, queries = make(rng, count), make(rng, max(BATCHES))
    index = faiss.IndexFlatIP(D)
    index.add(rows)
    codes = compact(rows)
    for batch in BATCHES:
        asked = queries[:batch]
        ways: dict[str, Callable[[], IntArray]] = {
            "faiss": lambda asked=asked: index.search(asked, K)[1],  # type: ignore[misc]
            "ours": lambda asked=asked: nearest(rows, asked, K, codes).rows,  # type: ignore[misc]
        }
        took: dict[str, list[Took]] = {way: [] for way in ways}
        found: dict[str, IntArray] = {}
        for turn in range((ROUNDS if count < 500_000 else ROUNDS_OF_LARGE) + 1):
            for way, work in ways.items():
                seconds, found[way] = measure(work)
                if turn:  # the first warms up
                    took[way].append(seconds)
        wall = {way: median(each.wall for each in times) for way, times in took.items()}
        cpu = {way: median(each.cpu for each in times) for way, times in took.items()}
        print(
            row(
                f"{count:,} {name}",
                str(batch),
                *(f"{1e3 * wall[way]:,.1f} ({1e3 * cpu[way]:,.1f})" for way in ways),
                f"{wall['faiss'] / wall['ours']:.1f}",
                f"{cpu['faiss'] / cpu['ours']:.1f}",
                *(f"{recall(rows, asked, found[way]):.3f}" for way in ways),
            ),
            flush=True,
        )


def main(counts: list[int]) -> None:
    print(
        header(
            "rows", "queries", "FAISS flat, ms (CPU ms)", "ours, ms (CPU ms)", "times faster", "times less CPU",
            "recall of FAISS", "recall",
        )
    )  # fmt: skip
    for count in counts:
        compare("random", count, random_rows)
        compare("clustered", count, clustered_rows)


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or [100_000, 1_000_000])
