"""training_results.png: the curves of a run in one image."""

from pathlib import Path
from typing import Any

from clip_core.files import replacing
from clip_core.run.reader import RunReader


def draw_curves(run: Path) -> Path | None:
    """Draw a run's loss, recall, learning rate and speed from its metrics; None where there is nothing to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = list(RunReader(run).all_lines())
    train = [line for line in lines if line.get("kind") == "train"]
    evals = [line for line in lines if line.get("kind") == "eval"]
    if not train or not evals:
        return None
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).flat
    _curves(next(axes), "loss", [("training", train, "loss"), ("validation", evals, "val_loss")])
    for title, way in (("image to text", "image_to_text"), ("text to image", "text_to_image")):
        series = [(f"recall@{k}", evals, f"{way}_recall@{k}") for k in (1, 5, 10)]
        others = [("top-1 in batch", train, f"{way}_top1"), ("guard, recall@1", evals, f"guard_{way}_recall@1")]
        _curves(next(axes), f"{title}, validation pairs", [*series, *others])
    _curves(next(axes), "zero-shot accuracy", [("top-1", evals, "zero_shot_top1")])
    _curves(next(axes), "learning rate", [("learning rate", train, "lr")])
    speed = [("images a second", train, "images_per_second")]
    _curves(next(axes), "speed", speed)
    path = run / "training_results.png"
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=110)
    return path


def _curves(axis: Any, title: str, series: list[tuple[str, list[dict[str, Any]], str]]) -> None:
    """One plot; a series that the run did not track is left out."""
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=8)
    axis.grid(alpha=0.3)
    drawn = False
    for label, lines, key in series:
        points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, linewidth=1.4)
            drawn = True
    if drawn:
        axis.legend(fontsize=8)
    else:
        axis.text(0.5, 0.5, "not tracked in this run", ha="center", transform=axis.transAxes, color="grey")
