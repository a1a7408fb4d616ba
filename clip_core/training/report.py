"""Scores as plain lines and short tables."""

from collections.abc import Mapping, Sequence

from clip_core.run.records import Blend
from clip_core.training.guard import PREFIX

Scores = Mapping[str, float]

_WAYS = {"image_to_text": "to text", "text_to_image": "to image"}


def plain_line(scores: Scores, step: str, pace: str) -> str:
    """An evaluation in one line."""
    parts = [step, f"val loss {scores['val_loss']:.3f}", _recall_at_1(scores, "")]
    if "zero_shot_top1" in scores:
        parts.append(f"zero-shot {scores['zero_shot_top1']:.1%}")
    if f"{PREFIX}mean_recall" in scores:
        parts.append("guard " + _recall_at_1(scores, PREFIX))
    return "  ".join([*parts, pace] if pace else parts)


def _recall_at_1(scores: Scores, prefix: str) -> str:
    return "recall@1 " + ", ".join(f"{scores[f'{prefix}{way}_recall@1']:.1%} {words}" for way, words in _WAYS.items())


def before_and_after(columns: Sequence[tuple[str, Scores]]) -> list[str]:
    """Recall of the user's pairs and, where there is one, of the guard, one column a moment of the run."""
    rows = [["", *(name for name, _ in columns)]]
    scored = columns[0][1]
    for prefix, title in (("", ""), (PREFIX, "guard, ")):
        for way, words in _WAYS.items():
            for k in (1, 5, 10):
                name = f"{prefix}{way}_recall@{k}"
                if name in scored:
                    rows.append([f"{title}recall@{k} {words}", *(_percent(scores, name) for _, scores in columns)])
        if f"{prefix}mean_recall" in scored:
            rows.append([f"{title}mean recall", *(_percent(scores, f"{prefix}mean_recall") for _, scores in columns)])
    return aligned(rows)


def line_of_blends(blends: Sequence[Blend], chosen: float) -> list[str]:
    """One row a blend: mean recall, recall@1 both ways, and the guard's."""
    names = ["mean_recall", *(f"{way}_recall@1" for way in _WAYS), f"{PREFIX}mean_recall"]
    titles = ["mean recall", *(f"recall@1 {words}" for words in _WAYS.values()), "guard, mean recall"]
    shown = [(name, title) for name, title in zip(names, titles, strict=True) if name in blends[0].scores]
    rows = [["blend", *(title for _, title in shown), ""]]
    for blend in blends:
        said = "chosen" if blend.share == chosen else {0.0: "the start", 1.0: "the end"}.get(blend.share, "")
        rows.append([f"{blend.share:g}", *(_percent(blend.scores, name) for name, _ in shown), said])
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


def _percent(scores: Scores, name: str) -> str:
    return f"{scores[name]:.1%}" if name in scores else ""
