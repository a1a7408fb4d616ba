"""What clip-tui costs the terminal: bytes while a run trains, opening Live, the first frame, and CPU at rest.

python -m benchmarks.terminal [SECONDS]

Everything is measured in a pseudo-terminal of 160x50, on runs that the run writer makes; the training run writes a
line of metrics every 20 ms and evaluates every 4 s, as a small model at full speed does.
"""

import fcntl
import json
import math
import os
import pty
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

from benchmarks.train_run import header, row
from clip_core.run.metrics import WAYS
from clip_core.run.records import Probe, State, Status
from clip_core.run.writer import RunWriter

COLUMNS, ROWS = 160, 50
STEPS, STEP_SECONDS, EVALUATE_EVERY = 20_000, 0.02, 200


class Terminal:
    """`clip-tui ARGUMENTS` in a pseudo-terminal; `bytes` counts what it has sent."""

    def __init__(self, *arguments: str) -> None:
        self.began, self.bytes, self.seen = time.perf_counter(), 0, b""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
            os.execv(sys.executable, [sys.executable, "-m", "clip_tui.cli", *arguments])
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def read(self, seconds: float, until: bytes | None = None) -> float:
        """Read for some seconds, or until some bytes have come; returns the seconds since the process began."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0 and (until is None or until not in self.seen):
            if select.select([self._terminal], [], [], min(left, 0.1))[0]:
                block = os.read(self._terminal, 65536)
                self.bytes += len(block)
                self.seen = (self.seen + block)[-200_000:]
        if until is not None and until not in self.seen:
            raise TimeoutError(f"{until!r} did not come within {seconds} s")
        return time.perf_counter() - self.began

    def press(self, key: bytes) -> None:
        os.write(self._terminal, key)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._terminal)


class FakeTraining(threading.Thread):
    """Writes a run directory as the trainer does, at full speed, until `stop`."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.ending = path, threading.Event()

    def run(self) -> None:
        writer, noise = RunWriter(self.path), random.Random(0)
        for step in range(1, STEPS):
            if self.ending.wait(STEP_SECONDS):
                break
            write_step(writer, step, noise)
            writer.heartbeat(state=State.RUNNING, step=step, steps=STEPS, epoch=step // 100, epochs=STEPS // 100)
        writer.close()

    def stop(self) -> None:
        self.ending.set()
        self.join()


def write_step(writer: RunWriter, step: int, noise: random.Random) -> None:
    """The lines of a step."""
    share = step / STEPS
    writer.metric(
        "train", step, epoch=share, loss=4 * math.exp(-9 * share) + noise.random() * 0.3, lr=1e-3 * (1 - share),
        grad_norm=1 + noise.random(), temperature=0.07, logit_scale=14.0, image_to_text_top1=noise.random(),
        text_to_image_top1=noise.random(), images_per_second=1000 + 50 * noise.random(), data_wait=0.03,
        memory_mb=800 + noise.random(),
    )  # fmt: skip
    if step % EVALUATE_EVERY == 0:
        scores = {f"{way}_recall@{k}": min(1.0, share * k * 2) for way in WAYS for k in (1, 5, 10)}
        writer.metric("eval", step, epoch=share, mean_recall=share, val_loss=4 * math.exp(-5 * share), **scores)
        writer.metric("system", step, cpu_percent=95.0 + noise.random(), resident_mb=900.0)
        rows = range(8)
        similarity = [[noise.random() for _ in rows] for _ in rows]
        order = [sorted(rows, key=line.__getitem__, reverse=True) for line in similarity]
        captions = [f"a caption of the image {n}" for n in rows]
        images = [str(writer.path / f"{n}.png") for n in rows]
        probe = Probe(
            step=step, images=images, captions=captions, similarity=similarity, image_to_text=order, text_to_image=order
        )
        writer.probe(probe)


def make_finished(path: Path, lines: int) -> None:
    """A finished run with some lines of metrics, written quickly."""
    writer = RunWriter(path)
    writer.status(state=State.FINISHED, step=lines, steps=lines, epoch=5, epochs=5)
    write_step(writer, 1, random.Random(0))
    writer.close()
    status = Status.read(writer.paths.status)
    status.model_copy(update={"heartbeat": time.time() - 3600}).write(writer.paths.status)
    line = json.loads(writer.paths.metrics.read_text().splitlines()[0])
    with writer.paths.metrics.open("w", encoding="utf-8") as handle:
        for step in range(1, lines + 1):
            line["step"], line["time"] = step, 1.75e9 + step * 0.05
            line["loss"] = round(4 * math.exp(-3 * step / lines) + step * 7919 % 1000 / 5000, 6)
            handle.write(json.dumps(line) + "\n")


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = [*_hundred_runs(root / "many", seconds), *_training(root / "one", seconds)]
        rows += _long_run(root / "long", 1_000_000)
    print(header("what", "measured"))
    for name, value in rows:
        print(row(name, value))


def _hundred_runs(root: Path, seconds: float) -> list[tuple[str, str]]:
    for number in range(100):
        make_finished(root / f"run-{number:03d}", 100)
    terminal = Terminal(str(root))
    try:
        first = terminal.read(30, b"run-0")
        terminal.read(3)
        began, sent = terminal.cpu_seconds(), terminal.bytes
        terminal.read(seconds)
        used = (terminal.cpu_seconds() - began) / seconds
        return [
            ("first frame with 100 runs", f"{first:.2f} s"),
            ("CPU afterwards, nothing running", f"{used:.1%}, {(terminal.bytes - sent) / seconds:.0f} bytes/s"),
        ]
    finally:
        terminal.close()


def _training(root: Path, seconds: float) -> list[tuple[str, str]]:
    training = FakeTraining(root / "run")
    training.start()
    time.sleep(5)
    terminal = Terminal(str(root))
    try:
        terminal.read(30, b"run")
        terminal.read(2)
        before = terminal.bytes
        terminal.press(b"\r")
        terminal.read(3)
        opening, before = terminal.bytes - before, terminal.bytes
        cpu = terminal.cpu_seconds()
        terminal.read(seconds)
        rate, cpu = (terminal.bytes - before) / seconds, (terminal.cpu_seconds() - cpu) / seconds
        return [
            ("opening Live", f"{opening / 1000:.1f} kB"),
            ("Live while a run trains", f"{rate / 1000:.2f} kB/s, CPU {cpu:.1%}"),
        ]
    finally:
        terminal.close()
        training.stop()


def _long_run(root: Path, lines: int) -> list[tuple[str, str]]:
    make_finished(root / "run", lines)
    program = "import sys; from benchmarks.terminal import read_long; read_long(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(root / "run")], check=True, capture_output=True, text=True
    )
    return [(f"a run of {lines:,} lines", done.stdout.strip())]


def read_long(path: str) -> None:
    """Print the seconds until the first curve and until every line is read, and the memory of the process."""
    from clip_tui.watcher import RunWatch

    began = time.perf_counter()
    watch = RunWatch(Path(path))
    snapshot = watch.refresh()
    first = time.perf_counter() - began
    while not snapshot.complete:
        snapshot = watch.refresh()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    whole = time.perf_counter() - began
    print(f"first curve {first:.2f} s, every line {whole:.1f} s, {memory:.0f} MB")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
