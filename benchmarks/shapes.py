"""The demo's recipe on the drawn shapes: zero-shot accuracy, the time to 99 %, and combinations never seen.

    python -m benchmarks.shapes [SEEDS [clip-train flags ...]]

The time to 99 % is measured on a test set, which is evaluated at every evaluation and used for nothing else: neither
for the best checkpoint nor for the end of training. The same network is trained by a plain recipe too: a constant
learning rate of 1e-4, no warm-up, and every other pair of the batch a negative, equal captions included.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.train_run import header, row, train
from clip_core.data.synthetic import COLOURS, SHAPES, caption, create_synthetic, unseen_file
from clip_core.inference.clip import CLIPInference
from clip_core.run.metrics import SECOND
from clip_core.run.reader import RunReader
from clip_tui.demo import RECIPE

NEVER_SEEN = 3  # combinations
APART = 360  # images of the test set
APART_SEED = 1_000_000  # of their drawing, beside the run's
SIDE = 64
GOAL = 0.99
OFTEN = {"--eval-every": "10"}  # steps; evaluations are no time of training
# The cosine ends where it begins; nothing of the recipe's own is left.
PLAIN = {
    "--lr": "1e-4", "--min-lr": "1", "--warmup": "0", "--optimizer": "adamw", "--label-smoothing": "0", "--ema": "0",
    "--weight-decay": "0.1",
}  # fmt: skip
NAMES = (
    "seconds of training",
    "zero-shot top-1, 360 validation images",
    f"never seen, {NEVER_SEEN} combinations",
    "seconds to 99 %, test set",
    "top-1, test set",
    "plain recipe: seconds to 99 %",
    "plain recipe: top-1 at the end",
)


def main(seeds: int, extra: Sequence[str]) -> None:
    print(header("seed", *NAMES))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(seeds):
            rows.append(measure(Path(scratch) / str(seed), seed, extra))
            print(row(seed, *shown(rows[-1])), flush=True)
    print(row("median", *shown([median(column) for column in zip(*rows, strict=True)])))


def measure(here: Path, seed: int, extra: Sequence[str]) -> list[float]:
    """The values of NAMES; a goal that was never reached is infinitely far."""
    apart = here / "apart" / "dataset.json"
    create_synthetic(apart, count=APART, seed=APART_SEED + seed, size=SIDE)
    whole = [*flags(here / "all" / "dataset.json", seed, OFTEN, extra), "--guard-data", str(apart)]
    plain = [*flags(here / "all" / "dataset.json", seed, OFTEN | PLAIN, extra), "--guard-data", str(apart)]
    evaluations = train(here / "run", *whole)
    data_file = here / "part" / "dataset.json"
    train(here / "part_run", *flags(data_file, seed, {}, extra), "--holdout-combinations", str(NEVER_SEEN))
    by_plain = train_plainly(here / "plain_run", plain)
    return [
        evaluations[-1]["train_seconds"],
        evaluations[-1]["zero_shot_top1"],
        accuracy_unseen(here / "part_run", unseen_file(data_file)),
        seconds_to_goal(evaluations),
        apart_top1(evaluations[-1]),
        seconds_to_goal(by_plain),
        apart_top1(by_plain[-1]),
    ]


def flags(data_file: Path, seed: int, changes: dict[str, str], extra: Sequence[str]) -> list[str]:
    """The demo's recipe with some flags changed, each of which has one value; what is measured decides over `extra`."""
    recipe = dict(zip(RECIPE[::2], RECIPE[1::2], strict=True))
    recipe |= dict(zip(extra[::2], extra[1::2], strict=True)) | changes
    said = [word for pair in recipe.items() for word in pair]
    return ["--create-synthetic", "--data-file", str(data_file), "--seed", str(seed), *said]


def train_plainly(run: Path, said: list[str]) -> list[dict[str, Any]]:
    """As `train`, with nothing but the diagonal of the batch a match."""
    command = [sys.executable, "-m", "benchmarks.plain_recipe", "--run-dir", str(run), *said]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [line for line in RunReader(run).all_lines() if line["kind"] == "eval"]


def apart_top1(evaluation: dict[str, Any]) -> float:
    """Every class is one of the captions drawn apart, so recall@1 to text is zero-shot top-1."""
    return float(evaluation[f"{SECOND}image_to_text_recall@1"])


def seconds_to_goal(evaluations: list[dict[str, Any]]) -> float:
    """Training time at the first evaluation of at least 99 %."""
    reached = (line["train_seconds"] for line in evaluations if apart_top1(line) >= GOAL)
    return float(next(reached, float("inf")))


def shown(values: Sequence[float]) -> list[str]:
    return [form(name, value) for name, value in zip(NAMES, values, strict=True)]


def form(name: str, value: float) -> str:
    if "seconds" not in name:
        return f"{value:.1%}"
    return "not reached" if value == float("inf") else f"{value:.1f}"


def accuracy_unseen(run: Path, pairs_file: Path) -> float:
    """Top-1 among all 18 classes of the images whose colour-shape combination was never trained on."""
    pairs = json.loads(pairs_file.read_text(encoding="utf-8"))
    classes = [caption(colour, shape) for colour in COLOURS for shape in SHAPES]
    clip = CLIPInference(run, backend="torch")
    images = clip.encoder.encode_images([pairs_file.parent / pair["image"] for pair in pairs])
    answers = (images @ clip.encoder.encode_texts(classes).T).argmax(axis=1)
    hits = [classes[answer] == pair["caption"] for answer, pair in zip(answers, pairs, strict=True)]
    return float(sum(hits) / len(hits))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, sys.argv[2:])
