"""Quality at equal time: clip-train with no tuning flags against open_clip, from scratch, on the same pairs.

    python -m benchmarks.quality OUT SET_FOLDER ... [--minutes 10] [--seeds 3] [--select RUN,...] [--table]

Every run has a process of its own, one after another. A finished one is a line of OUT/results.jsonl and is not made
again; delete the line to have it made again. For each set and seed:

    ours:SEED                 clip-train --minutes M
    open_clip:defaults:SEED   open_clip with its defaults
    open_clip:LR:SEED         with a learning rate, and a warm-up and a schedule that fit the time: three rates with
                              seed 0, then the best of them (at its best evaluation, by mean recall@1 or, where the
                              captions are classes, zero-shot top-1) with the other seeds

--select names some of them, so that the matrix can be made in parts; the table is printed from what there is.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks.train_run import RECALLS, best, header, row, train
from clip_core.run.reader import RunReader

RATES = ("2.5e-4", "5e-4", "1e-3")
DEFAULTS = "defaults"
ZERO_SHOT = ("zero_shot_top1", "zero_shot_mean_per_class")
EVALUATIONS = ("last", "best")

Result = dict[str, Any]


class Run(NamedTuple):
    peer: str  # "ours" or "open_clip"
    lr: str  # of open_clip: one of RATES, another number, or DEFAULTS; of ours: ""
    seed: int

    @classmethod
    def parse(cls, text: str) -> "Run":
        """From `ours:0` or `open_clip:1e-3:0`.

        Raises:
            argparse.ArgumentTypeError: if it is neither.
        """
        peer, _, rest = text.strip().partition(":")
        lr, _, seed = rest.rpartition(":")
        known = (peer == "ours" and not lr) or (peer == "open_clip" and (lr == DEFAULTS or _is_number(lr)))
        if not known or not seed.isdecimal():
            raise argparse.ArgumentTypeError(f"{text!r} is no run; write ours:SEED or open_clip:LR|{DEFAULTS}:SEED")
        return cls(peer, lr, int(seed))

    def __str__(self) -> str:
        return ":".join(str(part) for part in self if part != "")


class Matrix:
    """The results of OUT/results.jsonl that trained for so many minutes."""

    def __init__(self, out: Path, minutes: float) -> None:
        self.out, self.minutes = out, minutes
        self._file = out / "results.jsonl"

    def results(self, folder: Path) -> dict[Run, Result]:
        """Of one set, by run."""
        if not self._file.is_file():
            return {}
        lines = [json.loads(line) for line in self._file.read_text(encoding="utf-8").splitlines()]
        mine = [line for line in lines if line["set"] == folder.name and line["minutes"] == self.minutes]
        return {Run.parse(line["run"]): line for line in mine}

    def make(self, folder: Path, run: Run) -> None:
        """Train, and write the result down."""
        print(f"{folder.name} {run}", file=sys.stderr, flush=True)
        if run.peer == "ours":
            name = f"{folder.name}_{self.minutes:g}min_{run.seed}"
            result = train_ours(self.out / "runs" / name, folder, self.minutes, run.seed)
        else:
            result = train_open_clip(folder, self.minutes, run)
        line = {"set": folder.name, "run": str(run), "minutes": self.minutes, **result}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def train_ours(run_dir: Path, folder: Path, minutes: float, seed: int) -> Result:
    if run_dir.exists():  # a run that was cut off
        shutil.rmtree(run_dir)
    evaluations = train(run_dir, *data_flags(folder), "--minutes", str(minutes), "--seed", str(seed))
    trained = [line for line in evaluations if line["step"] > 0]
    version = f"clip-train ({RunReader(run_dir).record().git})"
    return {"version": version, "steps": trained[-1]["step"], "last": trained[-1], "best": best(trained)}


def data_flags(folder: Path) -> list[str]:
    return ["--data-file", str(folder / "train.json"), "--val-file", str(folder / "val.json")]


def train_open_clip(folder: Path, minutes: float, run: Run) -> Result:
    command = [sys.executable, "-m", "benchmarks.open_clip_peer", str(folder)]
    flags = ["--minutes", str(minutes), "--seed", str(run.seed), *(["--lr", run.lr] if run.lr != DEFAULTS else [])]
    answer = subprocess.run([*command, *flags], check=True, stdout=subprocess.PIPE, text=True)
    result: Result = json.loads(answer.stdout.splitlines()[-1])
    return result


# ---------------------------------------------------------------- which runs


def missing(results: dict[Run, Result], seeds: int) -> Iterator[Run]:
    """The runs still to be made, as far as they are known: the best rate is known after the search."""
    for seed in range(seeds):
        runs = [Run("ours", "", seed), Run("open_clip", DEFAULTS, seed)]
        if seed == 0:
            runs += [Run("open_clip", rate, 0) for rate in RATES]
        elif rate := best_rate(results):
            runs.append(Run("open_clip", rate, seed))
        yield from (run for run in runs if run not in results)


def best_rate(results: dict[Run, Result]) -> str | None:
    """The best of RATES with seed 0; None until all were tried."""
    tried = {rate: results.get(Run("open_clip", rate, 0)) for rate in RATES}
    if not all(tried.values()):
        return None
    return max(RATES, key=lambda rate: main_score(results[Run("open_clip", rate, 0)]["best"]))


def main_score(scores: dict[str, float]) -> float:
    return scores["zero_shot_top1"] if "zero_shot_top1" in scores else both_ways(scores, 1)


def both_ways(scores: dict[str, float], k: int) -> float:
    return mean(scores[f"{way}_recall@{k}"] for way in ("image_to_text", "text_to_image"))


# ---------------------------------------------------------------- the table


def print_table(folder: Path, results: dict[Run, Result], minutes: float) -> None:
    """Means over the seeds with the range, of the last evaluation and of the best one."""
    if not results:
        return
    classes = any("zero_shot_top1" in result["last"] for result in results.values())
    names = ZERO_SHOT if classes else (*RECALLS, *(f"mean recall@{k}" for k in (1, 5, 10)))
    print(f"\n{folder.name}, {minutes:g} minutes, mean over the seeds (lowest to highest), in percent\n")
    titles = [name.replace("_recall", "").replace("_", " ") for name in names]
    print(header("trained by", "seeds", "steps", "evaluation", *titles))
    rate = best_rate(results)
    groups = {"ours": runs_of(results, ""), "defaults": runs_of(results, DEFAULTS)}
    groups |= {lr: runs_of(results, lr) for lr in dict.fromkeys(run.lr for run in results) if lr not in ("", DEFAULTS)}
    for group, runs in groups.items():
        chosen = ", the best of three" if group == rate else ""
        label = group if group in ("ours", DEFAULTS) else f"learning rate {group}{chosen}"
        for evaluation in EVALUATIONS if runs else ():
            by = runs[0]["version"] + ("" if group == "ours" else f", {label}")
            steps = spread([run["steps"] for run in runs], "{:,.0f}")
            columns = [[value(run[evaluation], name) for run in runs] for name in names]
            print(row(by, len(runs), steps, evaluation, *(spread(column, "{:.1f}") for column in columns)))
    theirs = groups.get(rate or "", [])
    if groups["ours"] and theirs:
        print_ratios(groups["ours"], theirs, ZERO_SHOT[:1] if classes else tuple(f"mean recall@{k}" for k in (1, 5)))


def print_ratios(ours: list[Result], theirs: list[Result], names: Sequence[str]) -> None:
    print("\nclip-train over open_clip's best of three learning rates:", end=" ")
    ratios = []
    for evaluation in EVALUATIONS:
        for name in names:
            peer = mean(value(run[evaluation], name) for run in theirs)
            times = mean(value(run[evaluation], name) for run in ours) / peer if peer else float("inf")
            ratios.append(f"{name} {times:.2f} ({evaluation} evaluation)")
    print("; ".join(ratios))


def runs_of(results: dict[Run, Result], lr: str) -> list[Result]:
    return [result for run, result in sorted(results.items()) if run.lr == lr]


def value(scores: dict[str, float], name: str) -> float:
    """In percent."""
    prefix, _, k = name.partition("mean recall@")
    return 100 * (scores[name] if prefix or not k else both_ways(scores, int(k)))


def spread(values: Sequence[float], form: str) -> str:
    whole = form.format(mean(values))
    return whole if len(values) == 1 else f"{whole} ({form.format(min(values))} to {form.format(max(values))})"


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality")
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+", help="each with train.json and val.json")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--select", type=lambda text: [Run.parse(part) for part in text.split(",")], default=[])
    parser.add_argument("--table", action="store_true", help="train nothing")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    matrix = Matrix(given.out, given.minutes)
    for folder in () if given.table else given.folders:
        if given.select:
            for run in given.select:
                if run not in matrix.results(folder):
                    matrix.make(folder, run)
            continue
        while run := next(missing(matrix.results(folder), given.seeds), None):
            matrix.make(folder, run)
    for folder in given.folders:
        print_table(folder, matrix.results(folder), given.minutes)


if __name__ == "__main__":
    main()
