"""Listing a long table: processor time and memory of `read_data`, beside reading the same file and no more.

    python -m benchmarks.listing [ROWS] [IMAGES]

The images are empty files in folders of 10,000; each row names one of them. The plain reading is that of the standard
library (csv, json) or of pyarrow with every value made a Python object, and keeps nothing. Listing chooses the columns,
cleans every caption, looks for every image (each folder is listed once) and keeps the pairs. "folders" is the time to
list the folders and no more, "walked" that to go through the pairs once; the ratio is that to plain and folders. Each
runs in a process of its own, three times; the fastest counts. The memory is the most that the process held.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.train_run import header, row

_RUNS = 3
_MEASURE = """
import json, re, sys, time
{imports}
start = time.process_time()
{work}
seconds, start = time.process_time() - start, time.process_time()
{after}
walked = time.process_time() - start
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024  # ru_maxrss has the parent's
print(json.dumps([count, seconds, walked, peak]))
"""
_OURS = _MEASURE.format(
    imports="from pathlib import Path; from clip_core.data.formats.detect import read_data",
    work="reading = read_data(Path(sys.argv[1]))",
    after="count = sum(pair.problem is None for pair in reading.pairs)",
)
_PLAIN = {
    "csv": _MEASURE.format(
        imports="import csv",
        work="with open(sys.argv[1], newline='') as file: count = sum(1 for row in csv.reader(file)) - 1",
        after="",
    ),
    "jsonl": _MEASURE.format(
        imports="import json",
        work="with open(sys.argv[1]) as file: count = sum(1 for line in file if json.loads(line))",
        after="",
    ),
    "parquet": _MEASURE.format(
        imports="from pyarrow.parquet import ParquetFile",
        work="count = sum(len(list(zip(*(column.to_pylist() for column in batch.columns))))"
        " for batch in ParquetFile(sys.argv[1]).iter_batches(20_000))",
        after="",
    ),
}


_FOLDERS = _MEASURE.format(
    imports="import os; from pathlib import Path",
    work="count = sum(item.is_file(follow_symlinks=False) for folder in Path(sys.argv[1]).parent.glob('images/*')"
    " for item in os.scandir(folder))",
    after="",
)


def write_lists(folder: Path, rows: int, images: int) -> dict[str, Path]:
    """The same rows as CSV, JSONL and, with pyarrow, Parquet."""
    names = [f"images/{number // 10_000:03d}/{number:08d}.jpg" for number in range(images)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    pairs = [(names[number % images], f"a caption of some words, number {number}") for number in range(rows)]
    files = {kind: folder / f"pairs.{kind}" for kind in ("csv", "jsonl", "parquet")}
    files["csv"].write_text("image,caption\n" + "".join(f'{image},"{caption}"\n' for image, caption in pairs))
    with files["jsonl"].open("w") as lines:
        lines.writelines(json.dumps({"image": image, "caption": caption}) + "\n" for image, caption in pairs)
    try:
        import pyarrow
        from pyarrow.parquet import write_table
    except ModuleNotFoundError:
        del files["parquet"]
    else:
        image, caption = zip(*pairs, strict=True)
        write_table(pyarrow.table({"image": image, "caption": caption}), files["parquet"])
    return files


def measure(script: str, file: Path) -> tuple[int, float, float, float]:
    """Rows, seconds, seconds to walk them once, and bytes; of three runs the one with the fewest seconds."""
    runs = []
    for _ in range(_RUNS):
        done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    count, seconds, walked, size = min(runs, key=lambda run: float(run[1]))
    return count, seconds, walked, size


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    images = int(sys.argv[2]) if len(sys.argv) > 2 else 200_000
    with tempfile.TemporaryDirectory() as name:
        files = write_lists(Path(name), rows, images)
        print(
            header("format", "rows", "plain s", "folders s", "listed s", "ratio", "walked s", "plain MB", "listed MB")
        )
        _, folders, _, _ = measure(_FOLDERS, files["csv"])
        for kind, file in files.items():
            _, plain, _, plain_size = measure(_PLAIN[kind], file)
            count, listed, walked, size = measure(_OURS, file)
            seconds = (f"{value:.2f}" for value in (plain, folders, listed, listed / (plain + folders), walked))
            print(row(kind, f"{count:,}", *seconds, f"{plain_size / 1e6:.0f}", f"{size / 1e6:.0f}"))


if __name__ == "__main__":
    main()
