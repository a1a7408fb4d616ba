"""The measure of parity itself: what it must notice."""

from pathlib import Path

import numpy as np
import pytest

from clip_core.errors import ParityError
from clip_core.inference.manifest import TEXT, VISION, Parity, ParityRow, Precision, Recall, Variant, onnx_files
from export.job import ExportJob
from export.parity import TOLERANCE, table, top1_agreement
from export.variants import check_variant


def parity(difference: float, agreement: float = 1.0) -> Parity:
    rows = tuple(
        ParityRow(file=file, batch=8, tokens=None, inputs=4, max_abs_diff=diff, mean_cosine=1.0, least_cosine=1.0)
        for file, diff in ((VISION, 0.0), (TEXT, difference))
    )
    return Parity(tolerance=TOLERANCE, images=4, captions=4, top1_agreement=agreement, rows=rows)


def variant(precision: Precision, parity: Parity) -> Variant:
    vision, text = onnx_files(precision)
    return Variant(precision=precision, vision=vision, text=text, parity=parity)


@pytest.mark.parametrize(
    ("difference", "agreement", "accepted"),
    [(9.9e-5, 1.0, True), (1e-4, 1.0, False), (1e30, 1.0, False), (0.0, 0.99, False)],
)
def test_it_is_accepted_below_the_tolerance_with_every_answer_the_same(difference, agreement, accepted) -> None:
    assert parity(difference, agreement).accepted is accepted
    assert ("accepted" in table(variant("fp32", parity(difference, agreement)))) is accepted


def test_top1_notices_one_answer_of_another_neighbour() -> None:
    scores = np.float32([[0.9, 0.1, 0.2], [0.1, 0.8, 0.3], [0.2, 0.3, 0.7]])
    assert top1_agreement(scores, scores) == 1.0
    other = scores.copy()
    other[0] = [0.1, 0.9, 0.2]
    assert top1_agreement(scores, other) < 1.0


def test_top1_counts_a_tie_of_the_reference_as_the_same_answer() -> None:
    scores = np.float32([[0.5, 0.5]])
    assert top1_agreement(scores, np.float32([[0.5, 0.5000002]])) == 1.0


@pytest.mark.parametrize(
    ("queries", "before", "after", "accepted"),
    [
        (600, 0.50, 0.495, True),
        (600, 0.50, 0.489, False),
        (40, 0.50, 0.475, True),  # one answer of 40 is more than a point, and no proof
        (40, 0.50, 0.45, False),
        (600, 0.50, 0.60, True),
    ],
)
def test_a_lower_precision_may_lose_one_point_of_recall_or_one_answer(queries, before, after, accepted) -> None:
    recall = Recall(pairs=queries, queries=queries, before=before, after=after)
    assert parity(0.01).model_copy(update={"exact": False, "recall": recall}).accepted is accepted


@pytest.mark.parametrize(
    ("cosine", "agreement", "accepted"), [(0.995, 0.98, True), (0.98, 1.0, False), (1, 0.9, False)]
)
def test_without_pairs_cosines_and_nearest_neighbours_decide(cosine, agreement, accepted) -> None:
    found = parity(0.01, agreement)
    rows = tuple(row.model_copy(update={"least_cosine": cosine}) for row in found.rows)
    assert found.model_copy(update={"exact": False, "rows": rows}).accepted is accepted


def test_a_variant_that_loses_too_much_is_refused_unless_asked_for(tmp_path: Path) -> None:
    recall = Recall(pairs=200, queries=400, before=0.5, after=0.4)
    lost = variant("int8", parity(0.01).model_copy(update={"exact": False, "recall": recall}))
    said: list[str] = []
    job = ExportJob(tmp_path / "model", tmp_path / "out", "bundle", said.append)
    with pytest.raises(ParityError, match=r"int8 variant .* recall@1 50\.0% -> 40\.0%; .*--accept-loss"):
        check_variant(job, lost, accept_loss=False)
    check_variant(job, lost, accept_loss=True)
    assert said == ["note: the int8 variant is kept as asked for: recall@1 50.0% -> 40.0%"]
    with pytest.raises(ParityError, match="differ from the model"):
        check_variant(job, variant("fp32", parity(0.01)), accept_loss=True)
