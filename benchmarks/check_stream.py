"""`clip-data check` of a stream beside the same shards indexed: time, processor time, and the most memory it held.

    python -m benchmarks.check_stream [IMAGES] [ROUNDS]

Small images (32 px JPEGs) with captions are written to 20 shards on the spot. The whole command runs on them indexed,
streamed from the disk, and streamed over HTTP from a server in another process, in turn, each in a process of its own.
The ratios are those of the medians.
"""

import subprocess
import sys
from statistics import median

from benchmarks.data_check_size import CHECK
from benchmarks.streams import served_shards
from benchmarks.train_run import header, row


def measure(*arguments: str) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak resident bytes of a check."""
    done = subprocess.run([sys.executable, "-c", CHECK, *arguments], capture_output=True, text=True, check=True)
    _, peak, seconds, cpu = map(float, done.stdout.splitlines()[-1].split())
    return seconds, cpu, peak * 1024


def main(images: int, rounds: int) -> None:
    with served_shards(images) as (local, url):
        report = str(local.with_name("report.json"))
        ways = {
            "indexed": [str(local), report],
            "streamed": [str(local), report, "--stream"],
            "over HTTP": [url, report],
        }
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, arguments in ways.items():
                found[name].append(measure(*arguments))
    print(f"{images:,} images of 32 px in 20 shards, median of {rounds} rounds")
    print(header("shards", "s", "of indexed", "CPU s", "of indexed", "peak RSS, MB"))
    middles = {name: [median(values) for values in zip(*measured, strict=True)] for name, measured in found.items()}
    first = middles["indexed"]
    for name, (seconds, cpu, peak) in middles.items():
        shares = f"{seconds / first[0]:.2f}", f"{cpu / first[1]:.2f}"
        print(row(name, f"{seconds:.1f}", shares[0], f"{cpu:.1f}", shares[1], f"{peak / 1e6:,.0f}"))


if __name__ == "__main__":
    given = [int(value) for value in sys.argv[1:]]
    main(*given, *(20_000, 5)[len(given) :])
