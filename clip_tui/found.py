"""An answer to a search as rows, beside another model's answer, and as CSV or JSON."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from clip_core.errors import UsageError
from clip_core.files import write_text
from clip_core.text import normalise_caption, printable
from clip_tui.encoder import Answer
from clip_tui.gallery import Gallery
from clip_tui.query import Term
from clip_tui.theme import GREEN
from clip_tui.widgets.results import Found, change

COLUMNS = ("rank", "score", "✓", "result", "captions")
COMPARED = ("rank", "score", "✓", "result", "other", "move", "drift", "captions")  # beside another model
_SHORTEST = 12  # of a column that is cut
_EXPECTED = 1000  # true matches whose ranks are asked for


def expected(terms: Sequence[Term], gallery: Gallery, *, images: bool) -> list[str]:
    """The true matches of a query of one term, as the gallery names them; none for a combination."""
    if len(terms) != 1 or terms[0].weight < 0:
        return []
    term = terms[0]
    if images:
        if term.image is not None:
            shared = [name for caption in gallery.captions_of.get(term.image, ()) for name in _images(gallery, caption)]
            return list(dict.fromkeys(name for name in shared if name != term.image))[:_EXPECTED]
        return list(_images(gallery, term.text))[:_EXPECTED]
    if term.image is None:
        return []
    wanted = {normalise_caption(caption) for caption in gallery.captions_of.get(term.image, ())}
    return [caption for caption in gallery.captions if normalise_caption(caption) in wanted][:_EXPECTED]


def _images(gallery: Gallery, caption: str) -> Sequence[str]:
    return gallery.images_of.get(normalise_caption(caption), ())


def rows_of(answer: Answer, gallery: Gallery, right: Sequence[str], other: Answer | None) -> list[Found]:
    """The results of an answer, each with its place in the other answer."""
    items, scores = answer.result.get("items", []), answer.result.get("similarities", [])
    places: dict[str, tuple[int, float]] = {}
    if other is not None:
        pairs = zip(other.result.get("items", []), other.result.get("similarities", []), strict=False)
        places = {name: (rank, score) for rank, (name, score) in enumerate(pairs, start=1)}
        places |= {name: (int(rank), score) for name, (rank, score) in other.result.get("ranks", {}).items()}
    true = set(right)
    return [
        Found(rank, name, score, "; ".join(gallery.captions_of.get(name, ())), name in true, places.get(name))
        for rank, (name, score) in enumerate(zip(items, scores, strict=False), start=1)
    ]


def right_line(answers: Sequence[Answer]) -> str:
    """`right answer at rank 37 of 180 (0.231)`, with two models `... → 12`; nothing where none is known."""
    best = [min(ranks.values()) for answer in answers if (ranks := answer.result.get("ranks"))]
    if not best:
        return ""
    rank, score = best[0]
    line = f"right answer at rank {int(rank):,} of {answers[0].result.get('total', 0):,} ({score:.3f})"
    return line + (f" → {int(best[1][0]):,} ({best[1][1]:.3f})" if len(best) > 1 else "")


def table_row(found: Found, *, compared: bool) -> list[Text]:
    """A row of COMPARED, or of COLUMNS."""
    other = found.other
    name = Path(found.item).name if found.caption or "/" in found.item else found.item
    row = [
        Text(f"{found.rank:,}", "bold", justify="right"),
        Text(f"{found.similarity:.3f}", justify="right"),
        Text("✓" if found.right else "", GREEN),
        Text(printable(name, 60), GREEN if found.right else "", overflow="ellipsis"),
    ]
    if compared:
        row += [
            Text(f"{other[0]:,}" if other else "–", justify="right"),
            change(found.rank, other[0]) if other else Text("–", "dim"),
            Text(f"{other[1] - found.similarity:+.1e}" if other else "–", "dim", justify="right"),
        ]
    return [*row, Text(printable(found.caption, 80), "dim", overflow="ellipsis")]


def column_widths(
    names: Sequence[str], rows: Sequence[Sequence[Text]], width: int, cut: Sequence[str] = ("captions", "result")
) -> list[int]:
    """Each as wide as its widest cell, but those of `cut` share what is left of `width`; the first gives way first."""
    needed = [max([cell_len(name), *(row[at].cell_len for row in rows)]) for at, name in enumerate(names)]
    left = width - 1 - sum(size + 2 for size in needed)  # 1: the scrollbar; 2: the padding of a cell
    for name in cut:
        if left < 0 and name in names:
            at = names.index(name)
            size = max(_SHORTEST, needed[at] + left)
            needed[at], left = size, left + needed[at] - size
    return needed


def refuse_results(path: Path) -> None:
    """
    Raises:
        UsageError: if results cannot be written to a file of this name.
    """
    if path.suffix not in (".json", ".csv"):
        raise UsageError(f"{path}: the results are written as .json or .csv; end the name with one of them.")
    if path.exists():
        raise UsageError(f"{path} exists; choose another name.")


def write_results(path: Path, query: dict[str, Any], source: str, rows: Sequence[Found]) -> None:
    """Write results as JSON (`.json`) or CSV (`.csv`).

    Raises:
        UsageError: if the file exists, has another suffix, or cannot be written.
    """
    refuse_results(path)
    records = [
        {
            "rank": row.rank, "similarity": row.similarity, "item": row.item, "right": row.right,
            "captions": row.caption, "other_rank": row.other[0] if row.other else None,
            "other_similarity": row.other[1] if row.other else None,
        }
        for row in rows
    ]  # fmt: skip
    if path.suffix == ".json":
        text = json.dumps({"query": query["terms"], "model": source, "results": records}, indent=2) + "\n"
    else:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(records[0]) if records else ["rank"])
        writer.writeheader()
        writer.writerows(records)
        text = out.getvalue()
    try:
        write_text(path, text)
    except (OSError, UnicodeEncodeError) as error:
        raise UsageError(f"{path} cannot be written ({getattr(error, 'strerror', None) or error}).") from None
