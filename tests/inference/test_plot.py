"""Plots: an image with its bars, a grid with scores; whatever the captions are."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.errors import UsageError
from clip_core.inference.plot import plot_bars, plot_grid
from tests.models import images_of

HOSTILE = ["$5 and $6", r"\frac{", "$\\undefined{x}$", "\x1b[31mred", "漢字 🙂", "new\nline", "", "x" * 500]


def test_bars_are_drawn_for_any_caption(tiny_run: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_bars(images_of(tiny_run)[0], HOSTILE, [0.1, -0.9, 0, 0, 0.2, 0.3, 0, 1], HOSTILE[0], tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as drawn:
        assert len(np.unique(np.asarray(drawn.convert("L")))) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]


@pytest.mark.parametrize("count", [0, 1, 7, 60])
def test_a_grid_shows_every_image(tiny_run: Path, tmp_path: Path, count: int) -> None:
    images = (images_of(tiny_run) * 2)[:count]
    plot_grid(images, [0.5] * count, "a $red$ circle", tmp_path / "g.png")
    with Image.open(tmp_path / "g.png") as drawn:
        colours = drawn.convert("RGB").getcolors(2**20)
    painted = sum(number for number, colour in colours if max(colour) - min(colour) > 40)
    assert painted >= 400 * min(count, 40)


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".jpg"])
def test_the_suffix_is_the_format(tiny_run: Path, tmp_path: Path, suffix: str) -> None:
    plot_bars(images_of(tiny_run)[0], ["a"], [0.5], "t", tmp_path / f"plot{suffix}")
    assert (tmp_path / f"plot{suffix}").stat().st_size > 500


def test_a_plot_that_cannot_be_written_is_one_sentence(tiny_run: Path, tmp_path: Path) -> None:
    for path, message in ((tmp_path / "plot.xyz", "png"), (tmp_path / "nowhere" / "plot.png", "no folder")):
        with pytest.raises(UsageError, match=message):
            plot_bars(images_of(tiny_run)[0], ["a"], [0.5], "t", path)
