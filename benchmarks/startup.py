"""How long a user waits: whole processes, medians of alternating runs.

python -m benchmarks.startup BUNDLE IMAGE [ROUNDS]
"""

import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.train_run import header, row

CLASSES = ("a red circle", "a blue square", "a green triangle")


def main(bundle: Path, image: Path, rounds: int) -> None:
    classify = ["clip_core.cli.infer", "classification", "--model", str(bundle), "--image", str(image)]
    wanted: dict[str, Callable[[], float]] = {
        "`clip-tui --help`": lambda: whole_process("clip_tui.cli", "--help"),
        "`clip-train --help`": lambda: whole_process("clip_core.cli.train", "--help"),
        "`clip-infer classification` on a bundle": lambda: whole_process(*classify, "--classes", *CLASSES),
        "`clip-tui`, first frame": first_frame,
    }
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    for _ in range(rounds):
        for name, measure in wanted.items():
            seconds[name].append(measure())
    print(header("command", "median seconds", "lowest", "highest"))
    for name, values in seconds.items():
        print(row(name, f"{median(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}"))


def whole_process(module: str, *arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def first_frame() -> float:
    """From the start of the process until the list of runs is drawn in a pseudo-terminal."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        child, terminal = pty.fork()
        if child == 0:
            os.environ.update(TERM="xterm-256color", LINES="24", COLUMNS="80")
            os.execv(sys.executable, [sys.executable, "-m", "clip_tui.cli", folder])
        seen = b""
        while b"Runs" not in seen:
            if not select.select([terminal], [], [], 20)[0]:
                raise TimeoutError("clip-tui drew nothing within 20 s")
            seen += os.read(terminal, 65536)
        elapsed = time.perf_counter() - started
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)
    return elapsed


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 7)
