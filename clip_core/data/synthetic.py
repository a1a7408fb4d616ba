"""Coloured shapes with captions: a data set that is drawn, so that the main job needs no download."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from clip_core.errors import DataError, UsageError
from clip_core.files import write_json

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (218, 36, 40),
    "blue": (36, 74, 222),
    "green": (36, 158, 62),
    "yellow": (242, 218, 34),
    "purple": (134, 46, 176),
    "orange": (244, 134, 22),
}
SHAPES = ("circle", "square", "triangle")
COMBINATIONS = tuple(itertools.product(COLOURS, SHAPES))

DEFAULT_SYNTHETIC = Path("data/synthetic/dataset.json")
UNSEEN_EACH = 20  # images drawn of each validation combination
MAX_HOLDOUT = len(COMBINATIONS) - len(COLOURS)  # beyond it some colour would never be seen

_OVERSAMPLING = 4  # shapes are drawn larger and averaged down, which smooths their edges
_JITTER = 12  # how far a shape's colour may be off in each channel
_CONTRAST = 120.0  # least distance between the shape's colour and the background, in RGB
_SHAPE_SIDE = (0.35, 0.75)  # least and largest side of a shape, as a share of the image's


@dataclass(frozen=True)
class SyntheticReport:
    """What was drawn: `unseen_file` lists the validation combinations, and is None where there are none."""

    data_file: Path
    count: int
    unseen_file: Path | None
    unseen_count: int
    validation: list[str]

    def sentence(self) -> str:
        text = f"drew {self.count:,} images for {self.data_file}"
        if self.unseen_file is None:
            return f"{text}."
        return f"{text}, and {self.unseen_count} of {', '.join(self.validation)} for {self.unseen_file}."


@dataclass(frozen=True)
class _Drawing:
    """One list and its images, in a folder named after it."""

    data_file: Path
    combinations: list[tuple[str, str]]
    count: int
    seed: int
    size: int

    @property
    def folder(self) -> Path:
        return self.data_file.parent / "images" / self.data_file.stem

    def items(self) -> Iterator[tuple[Path, str, str]]:
        for number, (colour, shape) in enumerate(itertools.cycle(self.combinations)):
            if number == self.count:
                return
            yield self.folder / f"{number:05d}_{colour}_{shape}.png", colour, shape

    def write(self) -> None:
        """Images first, the list last: an existing list has all its images."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = []
        for path, colour, shape in self.items():
            draw_shape(colour, shape, self.size, random.Random(f"{self.seed}/{path.stem}")).save(path)
            name = path.relative_to(self.data_file.parent).as_posix()
            entries.append({"image": name, "caption": caption(colour, shape)})
        write_json(self.data_file, entries)


def caption(colour: str, shape: str) -> str:
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"


def unseen_file(data_file: Path) -> Path:
    """Where the list of the validation combinations goes: `shapes.json` -> `shapes_unseen.json`."""
    return data_file.with_name(f"{data_file.stem}_unseen{data_file.suffix}")


def create_synthetic(
    data_file: Path, *, count: int, seed: int, size: int, holdout_combinations: int = 0
) -> SyntheticReport:
    """Draw coloured shapes and write them as PNG files and a pair list.

    Args:
        data_file: the list to write; the images go below `images/` beside it.
        count: images, spread evenly over the combinations.
        seed: the same seed draws the same images, wherever they are written.
        size: side of an image, in pixels.
        holdout_combinations: how many colour-shape combinations, chosen by the seed, are left out of the list
            and written to `unseen_file(data_file)` instead; every colour and every shape stays in, and up to six
            take one shape each from as many colours.
    Raises:
        UsageError: if the list exists, or too many combinations are to be left out.
        DataError: if the folder cannot be written to.
    """
    if data_file.exists():
        raise UsageError(f"{data_file} exists; give another name, or delete it.")
    unseen = _choose_holdout(holdout_combinations, seed)
    seen = [combination for combination in COMBINATIONS if combination not in unseen]
    evaluation = _Drawing(unseen_file(data_file), unseen, UNSEEN_EACH * len(unseen), seed, size)
    try:
        if unseen:
            evaluation.write()
        _Drawing(data_file, seen, count, seed, size).write()
    except OSError as error:
        raise DataError(f"cannot draw images beside {data_file} ({error.strerror}); give another path.") from None
    validation = [caption(*combination) for combination in unseen]
    return SyntheticReport(data_file, count, evaluation.data_file if unseen else None, evaluation.count, validation)


def draw_shape(colour: str, shape: str, size: int, dice: random.Random) -> Image.Image:
    """One shape of random size and place on a random muted background of another colour.

    RGB, `size` x `size` pixels.
    """
    fill = _jittered(COLOURS[colour], dice)
    side = size * _OVERSAMPLING
    length = side * dice.uniform(*_SHAPE_SIDE)
    left, top = dice.uniform(0, side - length), dice.uniform(0, side - length)
    image = Image.new("RGB", (side, side), _background(fill, dice))
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((left, top, left + length, top + length), fill)
    elif shape == "square":
        pen.rectangle((left, top, left + length, top + length), fill)
    else:
        corners = [(left, top + length), (left + length, top + length), (left + length / 2, top)]
        pen.polygon(corners, fill)
    return image.reduce(_OVERSAMPLING)


def _choose_holdout(holdout: int, seed: int) -> list[tuple[str, str]]:
    """Spread over the colours: none loses a second shape before each has lost one.

    A colour that is seen in one shape alone means that shape as well as itself, so what an image of it in another
    shape is called would be a guess; with two shapes the pairs say that colour and shape are two things.
    """
    if not 0 <= holdout <= MAX_HOLDOUT:
        raise UsageError(f"--holdout-combinations is {holdout}; it may be 0 to {MAX_HOLDOUT}.")
    dice = random.Random(f"{seed}/holdout")
    while True:
        unseen = dice.sample(COMBINATIONS, holdout)
        seen = [combination for combination in COMBINATIONS if combination not in unseen]
        shapes_of = [sum(colour == seen_colour for seen_colour, _ in seen) for colour in COLOURS]
        spread = max(shapes_of) - min(shapes_of) <= 1
        if spread and {shape for _, shape in seen} == set(SHAPES):
            return sorted(unseen)


def _jittered(colour: RGB, dice: random.Random) -> RGB:
    red, green, blue = (min(max(value + dice.randint(-_JITTER, _JITTER), 0), 255) for value in colour)
    return red, green, blue


def _background(fill: RGB, dice: random.Random) -> RGB:
    """A muted or pastel colour, at least `_CONTRAST` away from the shape's."""
    while True:
        grey = dice.uniform(30, 255)
        red, green, blue = (round(min(max(grey + dice.uniform(-24, 24), 0), 255)) for _ in range(3))
        if math.dist(fill, (red, green, blue)) >= _CONTRAST:
            return red, green, blue
