"""`clip-data check` of long lists: time, and the most memory that the process held.

    python -m benchmarks.data_check_size 1000000 3000000 10000000

A list of JSON lines is written, of so many pairs with 1,000 images of 64 x 64 pixels and captions of eight words, of
which a tenth repeat another; then the command is run on it, each in a process of its own. A last table has the findings
alone of so many images that were measured already (random values): exact and near duplicates, and odd looks.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.train_run import header, row
from clip_core.data.synthetic import create_synthetic

_IMAGES = 1000
_WORDS = [f"word{number}" for number in range(2000)]
CHECK = """
import resource, sys, time
from clip_core.cli.data import main
start, cpu = time.perf_counter(), time.process_time()
code = main(["check", sys.argv[1], "--json-file", sys.argv[2], *sys.argv[3:]])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(code, peak, time.perf_counter() - start, time.process_time() - cpu)
"""


def write_list(folder: Path, count: int) -> Path:
    """A list of `count` pairs beside images that are drawn once."""
    images = folder / "images"
    if not images.is_dir():
        create_synthetic(folder / "drawn.json", count=_IMAGES, seed=0, size=64, holdout_combinations=0)
    names = sorted(str(path.relative_to(folder)) for path in images.rglob("*.png"))
    rng, path = np.random.default_rng(0), folder / f"{count}.jsonl"
    with path.open("w") as out:
        for start in range(0, count, 100_000):
            many = min(100_000, count - start)
            words = rng.integers(0, len(_WORDS), (many, 7))
            numbers = np.where(rng.random(many) < 0.1, rng.integers(0, 1000, many), np.arange(start, start + many))
            words[numbers < 1000] = numbers[numbers < 1000, None]  # the same caption for the same number
            lines = (
                json.dumps({"image": names[number % len(names)], "caption": f"{number} " + " ".join(chosen)}) + "\n"
                for number, chosen in zip(numbers.tolist(), ([_WORDS[w] for w in r] for r in words), strict=True)
            )
            out.writelines(lines)
    return path


def measure(path: Path) -> tuple[float, float, float]:
    """Peak resident bytes, seconds and processor seconds of a check."""
    command = [sys.executable, "-c", CHECK, str(path), str(path.with_suffix(".report.json"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, peak, seconds, cpu = map(float, done.stdout.splitlines()[-1].split())
    return peak * 1024, seconds, cpu


_IMAGES_ALONE = """
import resource, sys, time
import numpy as np
from clip_core.data.check import Check, Joined
from clip_core.data.check_captions import PairTable
from clip_core.data.check_images import FACTS, ImageFacts
from clip_core.data.findings import Findings
from clip_core.data.listed import Block, ListedPairs
from pathlib import Path

count = int(sys.argv[1])
rng = np.random.default_rng(0)
facts = np.zeros(count, dtype=FACTS)
facts["readable"] = True
facts["content"] = rng.integers(0, 2**63, (count, 2), dtype=np.uint64)
facts["hash"] = rng.integers(0, 2**63, count, dtype=np.uint64) * 2
facts["width"], facts["height"], facts["light"], facts["spread"], facts["sharpness"] = 300, 200, 200, 50, 1
pairs = ListedPairs(Path("/tmp"))
for start in range(0, count, 5000):
    some = range(start, min(start + 5000, count))
    pairs.extend(Block([f"{n}.jpg" for n in some], [f"caption {n}" for n in some], start + 1, "", some, None))
rows = np.arange(count)
flat = np.zeros(count, np.int32)
table = PairTable(rows, rows, flat, flat, flat.astype(np.int16), np.zeros(count, bool), ["Latin"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
check = Check(Joined(pairs), np.zeros(count, np.int8), table, rows, rows, ImageFacts(facts),
              np.ones(count, bool), [], [], dict(batch_size=256, matching_pairs=0.0, affected=0.0))
found = Findings(check)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time() - start)
"""


def main() -> None:
    print(header("pairs", "list, MB", "peak RSS, MB", "bytes a pair", "CPU s", "s"))
    with tempfile.TemporaryDirectory() as folder:
        small = measure(write_list(Path(folder), 1000))[0]
        for count in map(int, sys.argv[1:]):
            path = write_list(Path(folder), count)
            peak, seconds, cpu = measure(path)
            size = path.stat().st_size
            path.unlink()
            each = f"{(peak - small) / count:.0f}"
            print(
                row(f"{count:,}", f"{size / 1e6:,.0f}", f"{peak / 1e6:,.0f}", each, f"{cpu:,.0f}", f"{seconds:,.0f}"),
                flush=True,
            )
    print("\n" + header("images", "before the findings, MB", "peak RSS, MB", "CPU s"))
    for count in map(int, sys.argv[1:]):
        command = [sys.executable, "-c", _IMAGES_ALONE, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        before, peak, cpu = map(float, done.stdout.split())
        print(row(f"{count:,}", f"{before / 1e3:,.0f}", f"{peak / 1e3:,.0f}", f"{cpu:,.0f}"), flush=True)


if __name__ == "__main__":
    main()
