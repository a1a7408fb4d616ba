"""The measure of parity itself: what it must notice."""

import numpy as np
import pytest

from clip_core.inference.bundle import TEXT, VISION, Parity, ParityRow
from export.parity import TOLERANCE, table, top1_agreement


def parity(difference: float, agreement: float = 1.0) -> Parity:
    rows = tuple(
        ParityRow(file=file, batch=8, tokens=None, inputs=4, max_abs_diff=diff, least_cosine=1.0)
        for file, diff in ((VISION, 0.0), (TEXT, difference))
    )
    return Parity(tolerance=TOLERANCE, images=4, captions=4, top1_agreement=agreement, rows=rows)


@pytest.mark.parametrize(
    ("difference", "agreement", "accepted"),
    [(9.9e-5, 1.0, True), (1e-4, 1.0, False), (1e30, 1.0, False), (0.0, 0.99, False)],
)
def test_it_is_accepted_below_the_tolerance_with_every_answer_the_same(difference, agreement, accepted) -> None:
    assert parity(difference, agreement).accepted is accepted
    assert ("accepted" in table(parity(difference, agreement))) is accepted


def test_top1_notices_one_answer_of_another_neighbour() -> None:
    scores = np.float32([[0.9, 0.1, 0.2], [0.1, 0.8, 0.3], [0.2, 0.3, 0.7]])
    assert top1_agreement(scores, scores) == 1.0
    other = scores.copy()
    other[0] = [0.1, 0.9, 0.2]
    assert top1_agreement(scores, other) < 1.0


def test_top1_counts_a_tie_of_the_reference_as_the_same_answer() -> None:
    scores = np.float32([[0.5, 0.5]])
    assert top1_agreement(scores, np.float32([[0.5, 0.5000002]])) == 1.0
