"""Listing a long table: processor time and memory of `read_data`, beside those of reading the same file and no more.

    python -m benchmarks.listing [ROWS] [IMAGES]

The images are empty files in folders of 10,000; each row names one of them. The plain reading is that of the standard
library (csv, json) or of pyarrow with every value made a Python object. Each runs in a process of its own.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.train_run import header, row

_MEASURE = """
import json, psutil, sys, time
{imports}
before, start = psutil.Process().memory_info().rss, time.process_time()
{work}
seconds = time.process_time() - start
print(json.dumps([count, seconds, psutil.Process().memory_info().rss - before]))
"""
_OURS = _MEASURE.format(
    imports="from pathlib import Path; from clip_core.data.formats.detect import read_data",
    work="reading = read_data(Path(sys.argv[1])); count = sum(pair.problem is None for pair in reading.pairs)",
)
_PLAIN = {
    "csv": _MEASURE.format(
        imports="import csv",
        work="with open(sys.argv[1], newline='') as file: count = sum(1 for row in csv.reader(file)) - 1",
    ),
    "jsonl": _MEASURE.format(
        imports="import json",
        work="with open(sys.argv[1]) as file: count = sum(1 for line in file if json.loads(line))",
    ),
    "parquet": _MEASURE.format(
        imports="from pyarrow.parquet import ParquetFile",
        work="count = sum(len(list(zip(*(column.to_pylist() for column in batch.columns))))"
        " for batch in ParquetFile(sys.argv[1]).iter_batches(20_000))",
    ),
}


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


def measure(script: str, file: Path) -> tuple[int, float, float]:
    """Rows, seconds and bytes."""
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True)
    count, seconds, size = json.loads(done.stdout)
    return count, seconds, size


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    images = int(sys.argv[2]) if len(sys.argv) > 2 else 200_000
    with tempfile.TemporaryDirectory() as name:
        files = write_lists(Path(name), rows, images)
        print(header("format", "rows", "plain s", "listed s", "ratio", "plain MB", "listed MB"))
        for kind, file in files.items():
            _, plain, plain_size = measure(_PLAIN[kind], file)
            count, listed, size = measure(_OURS, file)
            cells = (f"{count:,}", f"{plain:.2f}", f"{listed:.2f}", f"{listed / plain:.1f}")
            print(row(kind, *cells, f"{plain_size / 1e6:.0f}", f"{size / 1e6:.0f}"))


if __name__ == "__main__":
    main()
