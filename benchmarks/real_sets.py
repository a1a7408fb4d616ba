"""A baseline on real pairs: train on train.json, judge on val.json, report what ten minutes gave.

    python -m benchmarks.real_sets RUN_DIR SET_FOLDER [clip-train flags ...]

The evaluation reported is the last one whose training time is within `MINUTES`.
"""

import sys
from pathlib import Path

from benchmarks.train_run import RECALLS, header, row, train

MINUTES = 10


def main(run: Path, folder: Path, flags: list[str]) -> None:
    data = ["--data-file", str(folder / "train.json"), "--val-file", str(folder / "val.json")]
    evaluations = train(run, *data, *flags)
    in_time = [line for line in evaluations if line["train_seconds"] <= 60 * MINUTES]
    last = in_time[-1]
    names = [*RECALLS, *(name for name in ("zero_shot_top1", "zero_shot_mean_per_class") if name in last)]
    print(header("set", "minutes", "step", "val loss", *names))
    minutes = f"{last['train_seconds'] / 60:.1f}"
    scores = (f"{last[name]:.3f}" for name in names)
    print(row(folder.name, minutes, f"{last['step']} of {evaluations[-1]['step']}", f"{last['val_loss']:.3f}", *scores))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
