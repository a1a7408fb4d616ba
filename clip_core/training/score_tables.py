"""Scores as short tables; labels and formats are those of the metric table."""

from collections.abc import Mapping, Sequence

from clip_core.config import RECALL_AT
from clip_core.run.metrics import SECOND, WAYS, lookup
from clip_core.run.records import Blend

Scores = Mapping[str, float]

_RECALLS = (*(f"{way}_recall@{k}" for way in WAYS for k in RECALL_AT), "mean_recall")
_OF_A_BLEND = ("mean_recall", *(f"{way}_recall@1" for way in WAYS), f"{SECOND}mean_recall")


def before_and_after(columns: Sequence[tuple[str, Scores]]) -> list[str]:
    """Recalls of both validation sets, one column for each (title, scores)."""
    rows = [["", *(title for title, _ in columns)]]
    for key in (*_RECALLS, *(SECOND + key for key in _RECALLS)):
        if key in columns[0][1]:
            rows.append([lookup(key).label, *(_text(scores, key) for _, scores in columns)])
    return aligned(rows)


def blend_table(blends: Sequence[Blend], chosen: float) -> list[str]:
    """One row for each blend: mean recall, recall@1 both ways, and the mean recall of the second validation set."""
    keys = [key for key in _OF_A_BLEND if key in blends[0].scores]
    rows = [["blend", *(lookup(key).label for key in keys), ""]]
    for blend in blends:
        note = {0.0: "initial weights", 1.0: "fine-tuned weights"}.get(blend.share, "")
        if blend.share == chosen:
            note = "chosen"
        rows.append([f"{blend.share:g}", *(_text(blend.scores, key) for key in keys), note])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _text(scores: Scores, key: str) -> str:
    return lookup(key).text(scores[key]) if key in scores else ""
