"""`clip-data check` beside CleanVision: what each finds on the same images, and the time it takes, alternating.

    python -m benchmarks.data_check PEER_PYTHON PAIRS.json ...

PEER_PYTHON is the interpreter of an environment that has cleanvision (pip install cleanvision). Each set is measured by
both in turn, each in a process of its own with two workers. Processor time, with that of child processes, is shown: it
changes little with other work on the machine. Starting Python is left out of both. Ours also reads the captions and
trains tokenizers. The last row is the search for near duplicates alone, among random hashes.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.train_run import header, row
from clip_core.data.near_duplicates import near_pairs

_HASHES = 1_000_000
_CLOCK = """
import json, os, sys, time
def clock():
    return time.perf_counter(), sum(os.times()[:4])
def since(start):
    return [now - then for now, then in zip(clock(), start)]
"""
_OURS = """
from pathlib import Path
from clip_core.data.check import check_data
from clip_core.data.findings import Findings
from clip_core.data.formats.detect import read_data
start = clock()
findings = Findings(check_data(read_data(Path(sys.argv[1])).pairs, workers=2))
seconds = since(start)
print(json.dumps([seconds, len(findings.facts), {f.kind: f.count for f in findings.found}]))
"""
_PEER = """
import contextlib, io
from pathlib import Path
from cleanvision import Imagelab
file = Path(sys.argv[1])
paths = sorted({str(file.parent / entry["image"]) for entry in json.loads(file.read_text())})
start = clock()
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    lab = Imagelab(filepaths=paths)
    lab.find_issues(n_jobs=2, verbose=False)
seconds = since(start)
found = {name[3:-6]: int(lab.issues[name].sum()) for name in lab.issues if name.startswith("is_")}
print(json.dumps([seconds, len(paths), {name: count for name, count in found.items() if count}]))
"""


def measure(python: str, script: str, file: Path) -> tuple[list[float], int, dict[str, int]]:
    """Seconds and processor seconds, images, and how many of each finding."""
    done = subprocess.run([python, "-c", _CLOCK + script, str(file)], capture_output=True, text=True, check=True)
    seconds, images, found = json.loads(done.stdout.splitlines()[-1])
    return seconds, images, found


def main() -> None:
    peer, *files = sys.argv[1:]
    print(
        header(
            "set",
            "images",
            "ours CPU s",
            "CleanVision CPU s",
            "ratio",
            "ours, CPU s per 100,000",
            "CleanVision, CPU s per 100,000",
            "ours",
            "CleanVision",
        )
    )
    for file in map(Path, files):
        ours, theirs = measure(sys.executable, _OURS, file), measure(peer, _PEER, file)
        found = (", ".join(f"{name} {count:,}" for name, count in one[2].items()) for one in (ours, theirs))
        (_, cpu), (_, peer_cpu) = ours[0], theirs[0]
        each = (f"{seconds / images * 100_000:,.0f}" for seconds, images in ((cpu, ours[1]), (peer_cpu, theirs[1])))
        seconds = (f"{cpu:.1f}", f"{peer_cpu:.1f}", f"{cpu / peer_cpu:.2f}", *each)
        print(row(file.parent.name, f"{ours[1]:,}", *seconds, *found), flush=True)
    hashes = np.random.default_rng(0).integers(0, 2**64, _HASHES, dtype=np.uint64)
    start = time.process_time()
    near_pairs(hashes)
    print(f"\n{time.process_time() - start:.1f} CPU s for the near pairs of {_HASHES:,} random hashes")


if __name__ == "__main__":
    main()
