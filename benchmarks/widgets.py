"""How long charts, heat maps and thumbnails of clip-tui take to draw, and how long the event loop stands still.

python -m benchmarks.widgets [RUNS]        RUNS: a directory with a long run, for the stall of the event loop

textual-image is measured beside ours where it can be imported: pip install --no-deps --target FOLDER textual-image, and
FOLDER on PYTHONPATH.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
from PIL import Image
from textual._compositor import LayoutUpdate
from textual.app import App, ComposeResult
from textual.containers import Grid
from textual.screen import Screen
from textual.widget import Widget

from benchmarks.terminal import make_finished
from benchmarks.train_run import header, row
from clip_core.run.curve import Points
from clip_tui.app import ClipApp
from clip_tui.output import DiffingApp, _Changes
from clip_tui.widgets.axes import Smoothing, View
from clip_tui.widgets.heat_map import HeatMap
from clip_tui.widgets.image_view import ImageView
from clip_tui.widgets.kitty import Kitty
from clip_tui.widgets.plot import Chart, Line, Plot
from clip_tui.widgets.sixel import Sixel

SIZE = (160, 50)
POINTS, SERIES, THUMBNAILS = 10_000, 3, 24


class OneWidget(App[None]):
    """A chart or a heat map over the whole screen."""

    def __init__(self, widget: Plot | HeatMap) -> None:
        super().__init__()
        self._widget = widget

    def compose(self) -> ComposeResult:
        yield self._widget


class Thumbnails(DiffingApp):
    """A page of images."""

    CSS = "Grid { grid-size: 6 4; } ImageView { height: 1fr; }"

    def __init__(self, images: list[Path], view: Callable[[Path], Widget], pixels: str) -> None:
        super().__init__()
        self._images, self._view = images, view
        if pixels == "kitty":
            self.pixel_images = Kitty(lambda _: None)
        elif pixels == "sixel":
            self.pixel_images = Sixel(lambda _: None, print)

    def compose(self) -> ComposeResult:
        with Grid():
            for image in self._images:
                yield self._view(image)


def timed(act: Callable[[], object], rounds: int = 15) -> str:
    """The median, in ms."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - began)
    return f"{1000 * median(seconds):.1f} ms"


async def charts() -> list[tuple[str, str]]:
    noise = np.random.default_rng(0)
    x = np.arange(float(POINTS))

    def line(number: int) -> Line:
        y = 4 * np.exp(-x / 3000) + noise.random(POINTS) * 0.3 + number / 2
        return Line(f"series {number}", Points(x, x, y, y, y), "1.0")

    chart = Chart("Loss", tuple(line(number) for number in range(SERIES)), last_step=POINTS, log=True)
    plot, app = Plot(), None
    app = OneWidget(plot)
    found = []
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        for smoothing in Smoothing:
            view = View(smoothing=smoothing, log_y=True, cursor=5000.0)

            def draw(view: View = view) -> None:
                plot.show(chart, View())
                plot.show(chart, view)
                for y in range(SIZE[1]):
                    plot.render_line(y)

            value = timed(draw)
            found.append((f"chart, {SERIES} series x {POINTS:,} points, 160x50, smoothing {smoothing.value}", value))
    return found


async def heat_maps() -> list[tuple[str, str]]:
    found = []
    for size in (8, 64, 512):
        matrices = [np.random.default_rng(seed).random((size, size)) for seed in range(2)]
        heat = HeatMap()
        async with OneWidget(heat).run_test(size=SIZE) as pilot:
            await pilot.pause()

            def draw(heat: HeatMap = heat, matrices: list[np.ndarray] = matrices) -> None:
                heat.show(matrices[0] if heat.matrix is matrices[1] else matrices[1])
                for y in range(SIZE[1]):
                    heat.render_line(y)

            found.append((f"heat map {size}x{size}", timed(draw)))
    return found


async def thumbnails(folder: Path) -> list[tuple[str, str]]:
    """From the widgets to the characters for the terminal: nothing has changed, and all was taken away."""
    images = []
    for number in range(THUMBNAILS):
        images.append(folder / f"{number}.png")
        photograph(number).save(images[-1])
    ways: list[tuple[str, Callable[[Path], Widget], str]] = [
        (name, ImageView, name) for name in ("half blocks", "kitty", "sixel")
    ]
    if find_spec("textual_image") is not None:
        module = import_module("textual_image.widget")
        ways += [(f"textual-image, {name}", getattr(module, f"{name}Image"), "") for name in ("Halfcell", "Sixel")]
    return [row for name, view, pixels in ways for row in await repaints(name, Thumbnails(images, view, pixels))]


def photograph(seed: int) -> Image.Image:
    """Soft spots and some noise, 320x240: as hard to compress as a photograph, roughly."""
    random = np.random.default_rng(seed)
    soft = Image.fromarray(random.integers(0, 255, (6, 8, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
    noisy = np.asarray(soft) + random.normal(0, 6, (240, 320, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


async def repaints(name: str, app: Thumbnails) -> list[tuple[str, str]]:
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(0.2)
        while any(not view._strips for view in app.query(ImageView)):
            await pilot.pause(0.05)
        screen, length = app.screen, 0
        widgets = [widget for widget in app.query("*") if not isinstance(widget, Grid | Screen)]

        def draw(*, forget: bool) -> None:
            nonlocal length
            for widget in widgets:
                widget.refresh()
            if forget:
                app._shown.forget()
            screen._compositor.update_widgets(set(widgets))
            update = cast("LayoutUpdate", screen._compositor.render_update(full=forget, simplify=True))
            theirs = name.startswith("textual-image")
            length = len((update if theirs else _Changes(update, app._shown)).render_segments(app.console))

        found = []
        for what, forget in (("repaint of", False), ("a screen with", True)):
            draw(forget=True)
            value = timed(partial(draw, forget=forget))
            found.append((f"{what} {THUMBNAILS} cached thumbnails, {name}", f"{value}, {length / 1000:,.0f} kB"))
        return found


async def stalls(root: Path) -> list[tuple[str, str]]:
    """The longest time between two turns of the event loop while a long run is opened and read."""
    app, longest, busiest, ending = ClipApp(root), 0.0, 0.0, False

    async def beat() -> None:
        nonlocal longest, busiest
        before, used = time.perf_counter(), time.thread_time()
        while not ending:
            await asyncio.sleep(0.001)
            now, cpu = time.perf_counter(), time.thread_time()
            longest, busiest = max(longest, now - before - 0.001), max(busiest, cpu - used)
            before, used = now, cpu

    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(2)
        task = asyncio.create_task(beat())
        app.open_run(next(path for path in root.iterdir() if path.is_dir()))
        await pilot.pause(8)
        ending = True
        await task
    what = "longest stall of the event loop while a long run is opened and read; CPU time in the busiest turn"
    return [(what, f"{1000 * longest:.0f} ms; {1000 * busiest:.0f} ms")]


def main(root: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if root is None:
            root = Path(folder) / "runs"
            make_finished(root / "run", 300_000)
        rows = [*asyncio.run(charts()), *asyncio.run(heat_maps()), *asyncio.run(thumbnails(Path(folder)))]
        rows += asyncio.run(stalls(root))
    print(header("what", "measured"))
    for name, value in rows:
        print(row(name, value))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
