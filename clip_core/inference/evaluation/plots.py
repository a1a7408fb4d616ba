"""An evaluation as PNG files: reliability curve, confusion matrix, recall with confidence intervals."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clip_core.inference.evaluation.classification import ZeroShot
from clip_core.inference.evaluation.evaluate import Evaluation, Outcome
from clip_core.inference.evaluation.retrieval import Direction
from clip_core.inference.plot import plain, save_figure
from clip_core.text import printable

_NAMED = 40  # classes whose names are drawn
_NAME = 28  # characters


def write_plots(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the plots that the evaluation has into a folder, which is made; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    several = len(evaluation.outcomes) > 1
    for number, outcome in enumerate(evaluation.outcomes, start=1):
        end = f"_{number}" if several else ""
        zero = outcome.scores.zero_shot
        if zero and zero.calibration:
            figures[f"reliability{end}"] = _reliability(zero, _title(outcome))
        if zero and zero.confusion:
            figures[f"confusion{end}"] = _confusion(zero, evaluation.data.class_names or [], _title(outcome))
    if any(outcome.scores.retrieval for outcome in evaluation.outcomes):
        figures["recall"] = _recall(evaluation.outcomes)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def _title(outcome: Outcome) -> str:
    about = outcome.scores.about
    return printable(f"{Path(about.source).name} {about.precision}", 60)


def _reliability(zero: ZeroShot, title: str) -> Figure:
    assert zero.calibration
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    bins = [each for each in zero.calibration.bins if each.images]
    width = zero.calibration.bins[0].high
    upper.plot([0, 1], [0, 1], color="#94a3b8", linestyle="--", linewidth=1)
    upper.bar(
        [each.low for each in bins], [each.accuracy or 0.0 for each in bins], width, align="edge", color="#fdba74"
    )
    upper.plot(
        [each.confidence for each in bins], [each.accuracy for each in bins], "o-", color="#c2410c", markersize=4
    )
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    plain(upper.set_title(f"{title}: ECE {zero.calibration.ece:.1%}", loc="left", fontsize=10))
    lower.bar([each.low for each in bins], [each.images for each in bins], width, align="edge", color="#94a3b8")
    lower.set(xlabel="confidence", ylabel="images")
    return figure


def _confusion(zero: ZeroShot, names: list[str], title: str) -> Figure:
    matrix = np.zeros((len(names), len(names)))
    for true, predicted, images in zero.confusion or []:
        matrix[true, predicted] = images
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.28 * len(names) + 3, 5, 12))
    figure = Figure(figsize=(side, side), layout="constrained")
    place = figure.subplots()
    drawn = place.imshow(shares, cmap="Oranges", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(drawn, label="fraction of the class", shrink=0.6)
    if len(names) <= _NAMED:
        labels = [printable(name, _NAME) for name in names]
        place.set_xticks(range(len(names)), labels, rotation=90, fontsize=7)
        place.set_yticks(range(len(names)), labels, fontsize=7)
        plain(*place.get_xticklabels(), *place.get_yticklabels())
    place.set(xlabel="predicted", ylabel="class")
    plain(place.set_title(title, loc="left", fontsize=10))
    return figure


def _recall(outcomes: list[Outcome]) -> Figure:
    figure = Figure(figsize=(8, 4), layout="constrained")
    places = figure.subplots(1, 2, sharey=True)
    for number, outcome in enumerate(outcomes):
        found = outcome.scores.retrieval
        if found:
            for place, way in zip(places, (found.image_to_text, found.text_to_image), strict=True):
                shift = 0.8 * (number + 0.5) / len(outcomes) - 0.4
                values = np.array(list(way.recall.values()))
                place.bar(
                    np.arange(len(values)) + shift, values, 0.8 / len(outcomes), yerr=_errors(way), capsize=3,
                    label=_title(outcome),
                )  # fmt: skip
                place.set_xticks(range(len(values)), [f"R@{k}" for k in way.recall])
    for place, title in zip(places, ("image to text", "text to image"), strict=True):
        place.set_title(title, loc="left", fontsize=10)
        place.set_ylim(0, 1)
    plain(*places[1].legend(fontsize=8).get_texts())
    return figure


def _errors(way: Direction) -> NDArray[np.float64]:
    """Distances below and above the bars.  -> (2, k)"""
    pairs = [(value - way.intervals[k][0], way.intervals[k][1] - value) for k, value in way.recall.items()]
    return np.asarray(np.maximum(np.array(pairs).T, 0))
