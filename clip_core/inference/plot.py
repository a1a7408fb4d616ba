"""What a person would rather look at: an image with its bars, a grid of results with their scores."""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from clip_core.data.preprocess import ImageSource, load_image
from clip_core.errors import UsageError
from clip_core.files import replacing
from clip_core.text import printable

_FORMATS = ("png", "jpg", "jpeg", "pdf", "svg", "webp")
_MOST_BARS = 20
_MOST_IMAGES = 40
_COLUMNS = 5
_SIDE = 512  # pixels of a drawn image's longer side, at most


def plot_bars(image: ImageSource, labels: Sequence[str], values: Sequence[float], title: str, path: Path) -> None:
    """An image beside one bar for each label, in the order given, the longest 20 at most.

    Raises:
        UsageError: if the file cannot be written, or its suffix names no format.
    """
    labels, values = list(labels)[:_MOST_BARS], list(values)[:_MOST_BARS]
    figure = Figure(figsize=(9, max(3.0, 0.6 + 0.32 * len(labels))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.5])
    _draw_image(left, image)
    rows = range(len(labels))
    colours = ["#c2410c" if value == max(values) else "#94a3b8" for value in values]
    right.barh(rows, values, color=colours)
    plain(*right.set_yticks(rows, [printable(label, 48) for label in labels]), *right.get_yticklabels())
    right.invert_yaxis()
    low, high = min(0.0, *values), max(0.0, *values)
    right.set_xlim(low, high + 0.18 * ((high - low) or 1.0))
    for row, value in zip(rows, values, strict=True):
        right.text(max(value, 0.0), row, f" {value:.3f}", va="center", fontsize=9)
    right.spines[["top", "right"]].set_visible(False)
    plain(right.set_title(printable(title, 80), loc="left", fontsize=11))
    save_figure(figure, path)


def plot_grid(images: Sequence[ImageSource], values: Sequence[float], title: str, path: Path) -> None:
    """Images in the order given with their scores, the first 40 at most.

    Raises:
        UsageError: if the file cannot be written, or its suffix names no format.
    """
    images, values = list(images)[:_MOST_IMAGES], list(values)[:_MOST_IMAGES]
    columns = min(_COLUMNS, max(len(images), 1))
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(2.2 * columns, 2.6 * rows + 0.5), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place in places:
        place.axis("off")
    for rank, (place, image, value) in enumerate(zip(places, images, values, strict=False), start=1):
        _draw_image(place, image)
        name = printable(Path(image).name, 22) if isinstance(image, str | Path) else ""
        plain(place.set_title(f"{rank}.  {value:.3f}\n{name}", fontsize=9))
    plain(figure.suptitle(printable(title, 80), fontsize=12))
    save_figure(figure, path)


def check_plot_path(path: Path) -> None:
    """Refuse a plot that could not be written, before any work is done.

    Raises:
        UsageError: naming the formats, or the folder that is not there.
    """
    if path.suffix.lower().lstrip(".") not in _FORMATS:
        raise UsageError(f"--plot is {path}; its name should end in one of: {', '.join(_FORMATS)}.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot is {path}, but there is no folder {path.absolute().parent}.")


def _draw_image(place: Axes, image: ImageSource) -> None:
    image = load_image(image)
    image.thumbnail((_SIDE, _SIDE))
    place.imshow(image)
    place.axis("off")


def plain(*texts: Text) -> None:
    """Show a text as it is: a dollar sign in a caption is no formula."""
    for text in texts:
        if isinstance(text, Text):
            text.set_parse_math(False)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, atomically.

    Raises:
        UsageError: if the file cannot be written, or its suffix names no format.
    """
    check_plot_path(path)
    FigureCanvasAgg(figure)
    try:
        with _quiet_about_fonts(), replacing(path) as beside:
            figure.savefig(beside, format=path.suffix.lower().lstrip("."), dpi=110)
    except OSError as error:
        raise UsageError(f"the plot cannot be written to {path}: {error.strerror or error}.") from None


@contextmanager
def _quiet_about_fonts() -> Iterator[None]:
    """A character that the font lacks is drawn as a box; nobody needs a warning for each."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
