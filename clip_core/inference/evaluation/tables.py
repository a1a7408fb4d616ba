"""An evaluation as CSV files: items, captions, classes, confusion."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from clip_core.files import replacing
from clip_core.inference.evaluation.evaluate import Evaluation

Cell = str | int | float | None


def write_tables(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the tables that the evaluation has into a folder, which is made; returns them.

    `images.csv` and `captions.csv`: a line each, with columns of each model: `_1`, `_2`. `classes.csv` and
    `confusion.csv`: a line for each model and class, or pair of classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, tuple[Sequence[str], Iterable[Sequence[Cell]]]] = {
        "images.csv": _images(evaluation),
        "captions.csv": _captions(evaluation),
        "classes.csv": _classes(evaluation),
        "confusion.csv": _confusion(evaluation),
    }
    written = []
    for name, (header, rows) in tables.items():
        if header:
            with (
                replacing(folder / name) as beside,
                beside.open("w", encoding="utf-8", errors="replace", newline="") as file,
            ):
                csv.writer(file).writerows([header, *rows])
            written.append(folder / name)
    return written


def _images(evaluation: Evaluation) -> tuple[Sequence[str], Iterator[Sequence[Cell]]]:
    names, labels = evaluation.data.class_names or [], evaluation.data.labels
    header, columns = ["image"], [list(map(str, evaluation.data.images))]
    rows: list[list[Cell]] = [list(column) for column in columns]
    if labels is not None:
        header.append("class")
        rows.append([names[label] for label in labels.tolist()])
    for number, outcome in enumerate(evaluation.outcomes, start=1):
        if guess := outcome.predictions:
            header += [f"predicted_{number}", f"confidence_{number}", f"class_rank_{number}"]
            rows.append([names[label] for label in guess.predicted.tolist()])
            rows.append([round(value, 6) for value in guess.confidence.tolist()])
            rows.append([rank + 1 for rank in guess.ranks.tolist()])
        if outcome.ranks:
            header.append(f"caption_rank_{number}")
            rows.append([rank + 1 for rank in outcome.ranks.image_to_text.tolist()])
    return header, zip(*rows, strict=True)


def _captions(evaluation: Evaluation) -> tuple[Sequence[str], Iterator[Sequence[Cell]]]:
    pairs = evaluation.data.pairs
    if pairs is None:
        return [], iter(())
    header, rows = ["caption"], [list[Cell](pairs.captions)]
    for number, outcome in enumerate(evaluation.outcomes, start=1):
        if outcome.ranks:
            header.append(f"image_rank_{number}")
            rows.append([rank + 1 for rank in outcome.ranks.text_to_image.tolist()])
    return header, zip(*rows, strict=True)


def _classes(evaluation: Evaluation) -> tuple[Sequence[str], Iterator[Sequence[Cell]]]:
    header = ["model", "class", "images", "recall", "precision", "f1", "average_precision", "confused_with", "confused"]
    rows = [
        (
            number, row.name, row.images, row.recall, row.precision, row.f1, row.average_precision, row.confused_with,
            row.confused,
        )
        for number, outcome in enumerate(evaluation.outcomes, start=1)
        if outcome.scores.zero_shot
        for row in outcome.scores.zero_shot.per_class or []
    ]  # fmt: skip
    return header if rows else [], iter(rows)


def _confusion(evaluation: Evaluation) -> tuple[Sequence[str], Iterator[Sequence[Cell]]]:
    names = evaluation.data.class_names or []
    rows = [
        (number, names[true], names[predicted], images)
        for number, outcome in enumerate(evaluation.outcomes, start=1)
        if outcome.scores.zero_shot
        for true, predicted, images in outcome.scores.zero_shot.confusion or []
    ]
    return ["model", "class", "predicted", "images"] if rows else [], iter(rows)
