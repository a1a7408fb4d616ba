"""Ctrl-C in the middle of decoding many images: seconds to the exit, and what the next run finds decoded.

    python -m benchmarks.decode_interrupt [IMAGES]

The images are hard links to 500 drawn JPEGs of 96 x 96 pixels, each under a name of its own. A child process lists the
folder and decodes it into the cache as `clip-train` does, with a progress bar on a terminal; at half of the images it
gets the SIGINT of Ctrl-C. A second one continues, and a third finds all of them decoded. `clip-data check`, which keeps
nothing, is interrupted too.
"""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.train_run import header, row

_SIDE = 32  # pixels of a decoded image: 200,000 are 0.6 GB
_DRAWN = 500
_CHILD = """
import sys
from pathlib import Path
from clip_core.data.formats.detect import read_data
from clip_core.data.pairs import distinct_images
from clip_core.data.progress import DecodeProgress
from clip_core.data.store import ImageStore
from clip_core.network import Preprocessing
images = distinct_images(read_data(Path(sys.argv[1])).pairs)
half = int(sys.argv[2])
try:
    with DecodeProgress(print) as progress:
        def watched(done, total):
            global half
            progress(done, total)
            if 0 < half <= done:
                half = 0
                print("half", flush=True)
        ImageStore.build(images, Preprocessing(image_size=int(sys.argv[3])), cache_gb=40, progress=watched)
    print("all decoded", flush=True)
except KeyboardInterrupt as interrupt:
    print(interrupt, flush=True)
"""
_CHECK_SECONDS = 15.0  # after which the check is interrupted


def write_images(folder: Path, count: int) -> None:
    """`count` names for 500 images, in folders of 10,000, and a list of them."""
    rng = np.random.default_rng(0)
    drawn = folder / "drawn"
    drawn.mkdir()
    for number in range(min(_DRAWN, count)):
        pixels = np.kron(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
        Image.fromarray(pixels).save(drawn / f"{number}.jpg", quality=90)
    with (folder / "pairs.csv").open("w") as file:
        file.write("image,caption\n")
        for number in range(count):
            name = f"images/{number // 10_000:03d}/{number:07d}.jpg"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(drawn / f"{number % _DRAWN}.jpg", folder / name)
            file.write(f"{name},image number {number}\n")


class Terminal:
    """A pseudo-terminal for a child's standard error, so that it draws its bar; `text` is what it wrote."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.text = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                self.text += os.read(self._ours, 65536).decode(errors="replace")
            except OSError:
                return


def decode(data: Path, cache: Path, half: int) -> tuple[float, float, str, bool]:
    """Seconds in all, seconds from SIGINT to the exit (0 without), the last line, and whether a bar was drawn."""
    terminal = Terminal()
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(data), str(half), str(_SIDE)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        stderr=terminal.theirs,
        text=True,
    )
    assert child.stdout is not None
    last, interrupted = "", None
    for line in child.stdout:
        last = line.strip()
        if last == "half":
            interrupted = time.perf_counter()
            child.send_signal(signal.SIGINT)
    child.wait()
    end = time.perf_counter()
    return end - start, end - interrupted if interrupted else 0.0, last, "decoded:" in terminal.text


def check(data: Path) -> float:
    """Seconds from SIGINT to the exit of a `clip-data check` that is decoding."""
    child = subprocess.Popen(
        [sys.executable, "-m", "clip_core.cli.data", "check", str(data)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(_CHECK_SECONDS)
    start = time.perf_counter()
    child.send_signal(signal.SIGINT)
    print(f"clip-data check: {child.communicate()[1].strip().splitlines()[-1]}")
    return time.perf_counter() - start


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and their children
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name, "data"), Path(name, "cache")
        folder.mkdir()
        write_images(folder, count)
        data = folder / "pairs.csv"
        print(header("run", "seconds", "seconds from Ctrl-C to the exit", "progress bar", "says"))
        for run, half in (("interrupted at half", count // 2), ("continued", 0), ("all in the cache", 0)):
            seconds, stopped, said, bar = decode(data, cache, half)
            print(
                row(run, f"{seconds:.1f}", f"{stopped:.2f}" if half else "", "yes" if bar else "no", said), flush=True
            )
        print(f"clip-data check exits {check(data):.2f} s after Ctrl-C.")


if __name__ == "__main__":
    main()
