"""Does a long run keep its memory? The resident size of a real clip-train, epoch by epoch.

    python -m benchmarks.memory SET_FOLDER [clip-train flags ...]

`memory_mb` of metrics.jsonl, which on a CPU is the process's resident size; the first epoch, which allocates, is left
out of the verdict.
"""

import sys
import tempfile
from itertools import groupby
from pathlib import Path
from statistics import mean

from benchmarks.train_run import header, row, train
from clip_core.run.reader import RunReader

EPOCHS = 20
FLAT = 0.02
LOGGED = ("--log-every", "2")  # steps


def main(folder: Path, flags: list[str]) -> None:
    data = ["--data-file", str(folder / "train.json"), "--val-file", str(folder / "val.json")]
    epochs = [] if "--epochs" in flags else ["--epochs", str(EPOCHS)]
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        train(run, *data, *epochs, *LOGGED, *flags)
        sizes = by_epoch(run)
    print(header("epoch", "least MB", "mean MB", "most MB"))
    for epoch, values in sizes.items():
        print(row(epoch, f"{min(values):,.1f}", f"{mean(values):,.1f}", f"{max(values):,.1f}"))
    later = [values for epoch, values in sizes.items() if epoch > 1]
    if len(later) < 2:
        print("\nToo few epochs to say whether it is flat.")
        return
    least, most = min(map(min, later)), max(map(max, later))
    grown = mean(later[-1]) / mean(later[0]) - 1
    verdict = "flat" if most / least - 1 <= FLAT else "not flat"
    print(
        f"\nAfter the first epoch {least:,.1f} to {most:,.1f} MB, which is {most / least - 1:.2%} apart; the last "
        f"epoch's mean is {grown:+.2%} from the second's: {verdict} within {FLAT:.0%}."
    )


def by_epoch(run: Path) -> dict[int, list[float]]:
    """Megabytes at each line of an epoch; epochs count from 1."""
    reader = RunReader(run)
    steps = reader.record().resolved.steps_per_epoch
    lines = [line for line in reader.all_lines() if line["kind"] == "train"]
    epochs = groupby(lines, key=lambda line: (line["step"] - 1) // steps + 1)
    return {epoch: [line["memory_mb"] for line in members] for epoch, members in epochs}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
