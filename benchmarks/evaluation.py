"""clip-infer evaluate on 50,000 images x 1,000 classes: time and peak memory, whole processes.

    python -m benchmarks.evaluation BUNDLE FOLDER [IMAGES CLASSES]

Writes JPEGs of 64 x 64 random pixels as class folders into FOLDER, evaluates BUNDLE on them with CLIP's 80 templates,
again with the stored embeddings, and then scores random embeddings of 512 values alone: what a larger model adds to its
own embedding time.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.train_run import header, row
from clip_core.scoring import l2_normalise

_SIDE, _DIMENSIONS = 64, 512


def write_images(folder: Path, images: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(images):
        place = folder / f"thing {number % classes:04d}"
        file = place / f"{number // classes:04d}.jpg"
        if not file.exists():
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)).save(file, quality=85)


def measured(*words: str) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak memory (MB) of a Python process."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} failed")
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def score(images: int, classes: int) -> None:
    """Everything but the embedding, on random embeddings; run in a process of its own."""
    from clip_core.inference.evaluation.classification import average_precision, classify, zero_shot

    rng = np.random.default_rng(0)
    prototypes = l2_normalise(rng.standard_normal((classes, _DIMENSIONS), np.float32))
    labels = rng.integers(0, classes, images)
    embeds = l2_normalise(prototypes[labels] + 3 * rng.standard_normal((images, _DIMENSIONS), np.float32))
    started = time.monotonic()
    precisions = average_precision(embeds, prototypes, np.arange(images), labels)
    names = [f"thing {number}" for number in range(classes)]
    found = zero_shot(classify(embeds, prototypes, labels, 100.0), names, precisions, 15, 0)
    print(f"{time.monotonic() - started:.1f} s for all figures, top-1 {found.top1:.1%}", file=sys.stderr)


def main() -> None:
    bundle, folder = sys.argv[1], Path(sys.argv[2])
    images, classes = map(int, sys.argv[3:5]) if len(sys.argv) > 4 else (50_000, 1000)
    write_images(folder, images, classes)
    command = ("-m", "clip_core.cli.infer", "evaluate", "--model", bundle, "--data", str(folder))
    report = ("--index", str(folder.with_name("index")), "--csv", str(folder.with_name("tables")))
    print(header(f"{images:,} images x {classes:,} classes", "seconds", "CPU seconds", "peak memory, MB"))
    for what, words in (
        ("embedded now", (*command, *report)),
        ("stored embeddings", (*command, *report)),
        ("random embeddings of 512 values, scores alone", ("-m", __spec__.name, "--score", str(images), str(classes))),
    ):
        seconds, cpu, memory = measured(*words)
        print(row(what, f"{seconds:.1f}", f"{cpu:.1f}", f"{memory:,.0f}"), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--score":
        score(*map(int, sys.argv[2:4]))
    else:
        main()
