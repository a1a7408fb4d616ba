"""What `clip-train --hard-negatives` changes: scenes of two shapes, whose captions need the order of words.

    python -m benchmarks.hard_negatives [EPOCHS]

"a red circle above a blue square" and "a blue circle above a red square" have the same words. One run with and one
without hard negatives, of the same seed and number of steps; then the probes of `clip-infer evaluate --hard-negatives`
on 400 scenes that neither has seen.
"""

import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "blue": (40, 80, 220), "green": (40, 160, 60), "yellow": (230, 200, 40)}
SHAPES = ("circle", "square", "triangle")
PAIRS, VALIDATION = 4000, 400


def draw(folder: Path) -> None:
    """Write the images, train.json and val.json."""
    rng, pairs = random.Random(0), []
    for number in range(PAIRS):
        (above, below), shapes = rng.sample(list(COLOURS), 2), rng.choices(SHAPES, k=2)
        image = Image.new("RGB", (64, 64), (245, 245, 245))
        pen = ImageDraw.Draw(image)
        for colour, shape, height in zip((above, below), shapes, (16, 48), strict=True):
            x, y = rng.randint(16, 48), height + rng.randint(-3, 3)
            box = (x - 12, y - 12, x + 12, y + 12)
            if shape == "circle":
                pen.ellipse(box, fill=COLOURS[colour])
            elif shape == "square":
                pen.rectangle(box, fill=COLOURS[colour])
            else:
                pen.polygon([(x, y - 13), (x - 13, y + 12), (x + 13, y + 12)], fill=COLOURS[colour])
        image.save(folder / f"{number:05}.png")
        caption = f"a {above} {shapes[0]} above a {below} {shapes[1]}"
        pairs.append({"image": f"{number:05}.png", "caption": caption})
    (folder / "train.json").write_text(json.dumps(pairs[:-VALIDATION]))
    (folder / "val.json").write_text(json.dumps(pairs[-VALIDATION:]))


def main(epochs: str = "4") -> None:
    print("| hard negatives | s | recall@1 image to text | order | swap | replace |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw(folder)
        for name, more in (("no", ()), ("yes", ("--hard-negatives",))):
            flags = ["--data", "train.json", "--val-file", "val.json", "--run-dir", name, "--epochs", epochs, *more]
            started = time.monotonic()
            _run("train", *flags, cwd=folder)
            seconds = time.monotonic() - started
            _run("infer", "evaluate", "--model", name, "--data", "val.json", "--hard-negatives", "--json-file",
                 f"{name}.json", cwd=folder)  # fmt: skip
            model = json.loads((folder / f"{name}.json").read_text())["models"][0]
            probes = [each["accuracy"] for each in model["hard_negatives"]["kinds"]]
            recall = model["retrieval"]["image_to_text"]["recall"]["1"]
            cells = [name, f"{seconds:.0f}", *(f"{value:.1%}" for value in itertools.chain([recall], probes))]
            print(f"| {' | '.join(cells)} |", flush=True)


def _run(command: str, *flags: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", f"clip_core.cli.{command}", *flags], cwd=cwd, check=True, capture_output=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
