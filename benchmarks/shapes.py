"""The demo's recipe on the drawn shapes: zero-shot accuracy, its time, and combinations never seen.

python -m benchmarks.shapes [SEEDS]
"""

import json
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.train_run import header, row, train
from clip_core.data.synthetic import COLOURS, SHAPES, caption, unseen_file
from clip_core.inference.clip import CLIPInference
from clip_tui.demo import RECIPE

NEVER_SEEN = 3  # combinations


def main(seeds: int) -> None:
    print(header("seed", "seconds of training", "zero-shot top-1, 360 held out", "never seen, 3 combinations"))
    seconds, accuracies, unseen = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(seeds):
            here = Path(scratch) / str(seed)
            last = train(here / "run", *flags(here / "all" / "dataset.json", seed))[-1]
            data_file = here / "part" / "dataset.json"
            train(here / "part_run", *flags(data_file, seed), "--holdout-combinations", str(NEVER_SEEN))
            seconds.append(last["train_seconds"])
            accuracies.append(last["zero_shot_top1"])
            unseen.append(accuracy_unseen(here / "part_run", unseen_file(data_file)))
            print(row(seed, f"{seconds[-1]:.1f}", f"{accuracies[-1]:.1%}", f"{unseen[-1]:.1%}"), flush=True)
    print(row("median", f"{median(seconds):.1f}", f"{median(accuracies):.1%}", f"{median(unseen):.1%}"))


def flags(data_file: Path, seed: int) -> list[str]:
    return ["--create-synthetic", "--data-file", str(data_file), "--seed", str(seed), *RECIPE]


def accuracy_unseen(run: Path, pairs_file: Path) -> float:
    """Top-1 among all 18 classes of the pictures whose colour-shape combination was never trained on."""
    pairs = json.loads(pairs_file.read_text(encoding="utf-8"))
    classes = [caption(colour, shape) for colour in COLOURS for shape in SHAPES]
    clip = CLIPInference(run, backend="torch")
    images = clip.encoder.encode_images([pairs_file.parent / pair["image"] for pair in pairs])
    answers = (images @ clip.encoder.encode_texts(classes).T).argmax(axis=1)
    hits = [classes[answer] == pair["caption"] for answer, pair in zip(answers, pairs, strict=True)]
    return float(sum(hits) / len(hits))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
