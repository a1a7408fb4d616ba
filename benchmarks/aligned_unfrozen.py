"""Aligned encoders with their last blocks unfrozen, against the same encoders kept frozen for the same time.

    python -m benchmarks.aligned_unfrozen OUT SET_FOLDER ... [--minutes 3] [--blocks 0 1 2] [--seed 0]

Each way starts from one aligned run (heads only, the default recipe) and goes on for the same minutes with
`clip-train --init`: 0 blocks trains the heads alone on decoded images, N blocks also the last N of both encoders.
`frozen` trains the heads on cached features from the start for the time of the aligned run and those minutes.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks.pretrained import pretrained_encoders
from benchmarks.train_run import header, row
from clip_core.cli.train_command import run as train
from clip_core.run.metrics import WAYS, quality
from clip_core.run.reader import RunReader

IMAGE, TEXT = "efficientnet_lite0", "minilm"  # both have blocks that can be unfrozen


def main(out: Path, sets: Sequence[Path], minutes: float, blocks: Sequence[int], seed: int) -> None:
    encoders = pretrained_encoders((IMAGE, TEXT))
    sides = ["--image-encoder", encoders[IMAGE].name, "--text-encoder", encoders[TEXT].name]
    columns = ("recall@1", "recall@5", "recall@10", "zero-shot top-1")
    print(header("set", "way", "seconds", "step", *columns), flush=True)
    for folder in sets:
        aligned = out / f"{folder.name}-aligned"
        first = _run(aligned, folder, seed, sides)
        _show(folder, "aligned", first, aligned)
        for count in blocks:
            run = out / f"{folder.name}-{count}"
            start = ["--init", str(aligned), "--minutes", str(minutes)]
            seconds = _run(run, folder, seed, [*start, *(["--unfreeze-last", str(count)] if count else [])])
            _show(folder, f"{count} blocks unfrozen", first + seconds, run)
        run = out / f"{folder.name}-frozen"
        seconds = _run(run, folder, seed, [*sides, "--minutes", str(minutes + first / 60)])
        _show(folder, "frozen", seconds, run)


def _run(run: Path, folder: Path, seed: int, flags: Sequence[str]) -> float:
    shutil.rmtree(run, ignore_errors=True)
    started = time.perf_counter()
    pairs = ["--data", str(folder / "train.json"), "--val-file", str(folder / "val.json")]
    train([*pairs, "--run-dir", str(run), "--seed", str(seed), *flags])
    return time.perf_counter() - started


def _show(folder: Path, way: str, seconds: float, run: Path) -> None:
    best = max((line for line in RunReader(run).all_lines() if line["kind"] == "eval"), key=quality)
    scores = [mean(best[f"{side}_recall@{k}"] for side in WAYS) for k in (1, 5, 10)]
    scores.append(best.get("zero_shot_top1", -1.0))
    texts = [f"{score:.3f}" if score >= 0 else "" for score in scores]
    print(row(folder.name, way, f"{seconds:.0f}", str(best["step"]), *texts), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--blocks", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.out, given.sets, given.minutes, given.blocks, given.seed)
