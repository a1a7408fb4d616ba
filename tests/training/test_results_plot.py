import math
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from clip_core.run.curve import Bucket, Curve
from clip_core.run.metrics import METRICS, charts_of
from clip_core.run.records import Pointer
from clip_core.run.writer import RunWriter
from clip_core.training.results_plot import draw_curves, results_figure
from tests.conftest import command_environment


def curve(*values: float) -> list[Bucket]:
    return [Bucket(step, step, value, value) for step, value in enumerate(values, 1)]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def test_every_metric_with_a_chart_is_drawn_in_table_order() -> None:
    figure = results_figure(dict.fromkeys(reversed(METRICS), curve(0.5, 0.4)))
    charts = charts_of(METRICS)
    assert [title.partition(",")[0] for title in titles(figure)] == [chart.title for chart, _ in charts]
    for axes, (chart, metrics) in zip(figure.axes, charts, strict=True):
        assert [line.get_label() for line in axes.lines] == [metric.short for metric in metrics]
        assert axes.get_yscale() == ("log" if chart.log else "linear")


def test_a_logarithmic_axis_needs_positive_values() -> None:
    (axes,) = results_figure({"loss": curve(1.0, 0.0)}).axes
    assert axes.get_yscale() == "linear"


def test_unregistered_numbers_have_a_chart_of_their_own_whatever_their_name() -> None:
    keys = ["my_score", "$bad_{math", "_hidden", "bell\x07\x1b[2J", "x" * 500, ""]
    figure = results_figure({key: curve(1.0, 2.0) for key in keys})
    assert len(figure.axes) == len(keys)
    assert "my score" in titles(figure)
    assert all("\x1b" not in title and len(title) < 60 for title in titles(figure))
    figure.canvas.draw()


def test_the_best_checkpoint_is_marked_in_each_chart() -> None:
    figure = results_figure({"loss": curve(3, 2, 1), "lr": curve(1, 1, 1)}, Pointer(checkpoint="step_0000002", step=2))
    for axes in figure.axes:
        assert list(axes.lines[-1].get_xdata()) == [2, 2]
        assert axes.get_legend().get_texts()[-1].get_text() == "best checkpoint, step 2"


def test_every_spike_is_drawn() -> None:
    values = Curve()
    values.extend(range(100_000), [1e6 if step == 54_321 else 1.0 for step in range(100_000)])
    (axes,) = results_figure({"grad_norm": values.buckets}).axes
    line = axes.lines[0]
    assert max(line.get_ydata()) == 1e6
    assert len(line.get_xdata()) < 5000
    assert line.get_xdata()[list(line.get_ydata()).index(1e6)] == pytest.approx(54_321, abs=100)


def test_the_image_of_a_run_is_written(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    assert draw_curves(tmp_path) is None
    for step in range(1, 6):
        writer.metric("train", step, loss=math.exp(-step), my_score=step)
    writer.metric("eval", 5, val_loss=1.0, mean_recall=0.5)
    writer.point_best("step_0000005", 5, {"mean_recall": 0.5})
    writer.close()
    path = draw_curves(tmp_path)
    assert path == tmp_path / "training_results.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 1000
    assert not list(tmp_path.glob("*.tmp"))


def test_a_long_run_is_drawn_in_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / "metrics.jsonl").open("w") as handle:
        for step in range(40_000):
            handle.write(f'{{"kind": "train", "step": {step}, "loss": 1.0, "pad": "{"x" * 960}"}}\n')
    code = (
        "import pathlib, resource, sys; from clip_core.training.results_plot import draw_curves, results_figure; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; results_figure({}); before = peak(); "
        "draw_curves(pathlib.Path(sys.argv[1])); print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, env=command_environment()
    )
    assert int(done.stdout) < 60 * 1024  # kilobytes, with matplotlib's own; the file has 40 MB
