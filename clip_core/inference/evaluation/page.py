"""An evaluation as one HTML page: figures, classes, calibration, and contact sheets of the worst errors."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from clip_core.data.check import Example
from clip_core.data.check_page import escaped, figure, page
from clip_core.inference.evaluation.classification import Calibration, ClassRow
from clip_core.inference.evaluation.evaluate import Evaluation, Outcome
from clip_core.inference.evaluation.report import row_cells, summary_rows
from clip_core.scoring import IntArray
from clip_core.text import plural

_SHOWN = 24  # images on a contact sheet
_CLASSES = 200  # of the per-class table
_CELLS = 40  # of the most frequent confusions


def evaluation_page(evaluation: Evaluation) -> str:
    """The whole page. It needs no other file, runs no script and loads nothing; every text of the data is escaped."""
    title = f"Evaluation of {' and '.join(outcome.scores.about.source for outcome in evaluation.outcomes)}"
    return page(title, summary_rows(evaluation), "".join(_body(evaluation)))


def _body(evaluation: Evaluation) -> Iterator[str]:
    several = len(evaluation.outcomes) > 1
    labels = [f"model {number}" if several else "" for number in range(1, len(evaluation.outcomes) + 1)]
    yield "<h2>Figures</h2>" + _table(["", *labels], ([label, *cells] for label, cells in row_cells(evaluation)))
    for outcome, label in zip(evaluation.outcomes, labels, strict=True):
        of = f", {label}" if several else ""
        yield from _wrong(evaluation, outcome, of)
        yield from _far(evaluation, outcome, of)
        zero = outcome.scores.zero_shot
        if zero and zero.per_class:
            yield from _classes(zero.per_class, of)
            yield from _confusions(evaluation, zero.confusion or [], of)
        if zero and zero.calibration:
            yield from _calibration(zero.calibration, of)
    for number in range(1, len(evaluation.outcomes)):
        yield from _changes(evaluation, number)


def _wrong(evaluation: Evaluation, outcome: Outcome, of: str) -> Iterator[str]:
    """Images with another class than theirs, the most confident first."""
    guess, names = outcome.predictions, evaluation.data.class_names or []
    if guess is None:
        return
    wrong = np.flatnonzero(guess.ranks > 0)
    wrong = wrong[np.argsort(-guess.confidence[wrong], kind="stable")]
    examples = [
        Example(
            [str(evaluation.data.images[row])],
            [names[guess.labels[row]]],
            f"predicted {names[guess.predicted[row]]}, {guess.confidence[row]:.1%}; "
            f"its class at rank {guess.ranks[row] + 1:,}",
        )
        for row in wrong[:_SHOWN].tolist()
    ]
    yield _sheet(
        f"Misclassified with the highest confidence{of}", f"{plural(len(wrong), 'image')} misclassified", examples
    )


def _far(evaluation: Evaluation, outcome: Outcome, of: str) -> Iterator[str]:
    """Images whose best caption ranks last."""
    pairs = evaluation.data.pairs
    if outcome.ranks is None or pairs is None:
        return
    ranks = outcome.ranks.image_to_text
    caption_of = np.empty(len(pairs.images), np.int64)
    caption_of[pairs.pair_images[::-1]] = pairs.pair_captions[::-1]
    worst = np.argsort(-ranks, kind="stable")
    worst = worst[ranks[worst] > 0]
    examples = [
        Example(
            [str(pairs.images[row])],
            [pairs.captions[caption_of[row]]],
            f"its nearest own caption ranks {ranks[row] + 1:,} of {len(pairs.captions):,}",
        )
        for row in worst[:_SHOWN].tolist()
    ]
    yield _sheet(f"Images farthest from their captions{of}", f"{plural(len(worst), 'image')} not at rank 1", examples)


def _classes(rows: Sequence[ClassRow], of: str) -> Iterator[str]:
    held = sorted((row for row in rows if row.images), key=lambda row: (row.recall or 0.0, row.name))
    more = f"<p>The {_CLASSES} worst of {len(held):,}.</p>" if len(held) > _CLASSES else ""
    header = ["class", "images", "recall", "precision", "F1", "average precision", "most confused with"]
    cells = (
        [
            row.name,
            f"{row.images:,}",
            *(_percent(value) for value in (row.recall, row.precision, row.f1, row.average_precision)),
            f"{row.confused_with} ({row.confused:,})" if row.confused_with else "",
        ]
        for row in held[:_CLASSES]
    )
    yield f"<h2>Classes, worst first{escaped(of)}</h2>{more}{_table(header, cells)}"


def _confusions(evaluation: Evaluation, cells: Sequence[Sequence[int]], of: str) -> Iterator[str]:
    names = evaluation.data.class_names or []
    wrong = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])
    rows = ([names[true], names[predicted], f"{images:,}"] for true, predicted, images in wrong[:_CELLS])
    yield f"<h2>Most frequent confusions{escaped(of)}</h2>{_table(['class', 'predicted', 'images'], rows)}"


def _calibration(found: Calibration, of: str) -> Iterator[str]:
    rows = (
        [f"{each.low:.1%} to {each.high:.1%}", f"{each.images:,}", _percent(each.confidence), _percent(each.accuracy)]
        for each in found.bins
        if each.images
    )
    table = _table(["confidence", "images", "mean confidence", "accuracy"], rows)
    yield f"<h2>Calibration{escaped(of)}: ECE {found.ece:.1%}</h2>{table}"


def _changes(evaluation: Evaluation, number: int) -> Iterator[str]:
    """Images that only one of two models classifies right, or retrieves the caption of at rank 1."""
    first, second = evaluation.outcomes[0], evaluation.outcomes[number]
    if first.predictions and second.predictions:
        before, after = first.predictions.ranks, second.predictions.ranks
        names = evaluation.data.class_names or []
        captions = [names[label] for label in first.predictions.labels.tolist()]
    elif first.ranks and second.ranks and evaluation.data.pairs:
        pairs = evaluation.data.pairs
        before, after = first.ranks.image_to_text, second.ranks.image_to_text
        caption_of = dict(zip(pairs.pair_images[::-1].tolist(), pairs.pair_captions[::-1].tolist(), strict=True))
        captions = [pairs.captions[caption_of[row]] for row in range(len(pairs.images))]
    else:
        return
    for what, rows in (("Gained", (before != 0) & (after == 0)), ("Lost", (before == 0) & (after != 0))):
        chosen: IntArray = np.flatnonzero(rows)
        examples = [
            Example(
                [str(evaluation.data.images[row])],
                [captions[row]],
                f"rank {before[row] + 1:,} before, {after[row] + 1:,} after",
            )
            for row in chosen[:_SHOWN].tolist()
        ]
        yield _sheet(f"{what} by model {number + 1} against model 1", plural(len(chosen), "image"), examples)


def _sheet(title: str, text: str, examples: Sequence[Example]) -> str:
    figures = "".join(map(figure, examples))
    return f"<h2>{escaped(title)}</h2>\n<p>{escaped(text)}.</p>\n<div class=sheet>\n{figures}</div>\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escaped(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}</table>\n"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
