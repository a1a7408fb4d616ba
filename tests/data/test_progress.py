"""Progress of decoding, and interrupting it: Ctrl-C ends within a second, and what was decoded is kept."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.data.progress import run_interruptibly

COUNT = 3000

BUILD = """
import signal, sys
from pathlib import Path
from clip_core.cli.app import run_app
from clip_core.data.store import ImageStore
from clip_core.network import Preprocessing
from cyclopts import App

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
app = App(name="build")

@app.default
def build(folder: Path):
    def progress(done, total):
        print(done, total, "." * 4000, flush=True)  # a pipe holds few such lines: it waits for whoever reads them
    store = ImageStore.build(sorted(folder.iterdir()), Preprocessing(image_size=32), progress=progress, workers=2)
    print("complete", len(store), len(store.failures), flush=True)

sys.exit(run_app(app))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    first = folder / "0.png"
    Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(first)
    for number in range(1, COUNT):
        os.link(first, folder / f"{number}.png")
    return folder


def started(folder: Path, cache: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip


def test_an_interrupt_ends_the_decoding_at_once_and_the_next_run_decodes_the_rest(folder: Path, tmp_path: Path):
    process = started(folder, tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line.split()[0]) >= 200:
            break
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert time.monotonic() - began < 10  # of 3,000 images; the test machine may be loaded
    done, _, rest = error.removeprefix("build: interrupted: ").partition(" ")
    assert rest == "of 3,000 images decoded and kept.\n"
    kept = int(done.replace(",", ""))
    assert 200 <= kept < COUNT

    again = started(folder, tmp_path)
    output, error = again.communicate(timeout=300)
    assert again.returncode == 0, error
    counts = [int(line.split()[0]) for line in output.splitlines()[:-1]]
    assert min(counts) >= kept
    assert output.splitlines()[-1] == f"complete {COUNT} 0"


def test_the_queue_of_work_is_bounded():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        for count in run_interruptibly(pool, 2, lambda item: 1, items()):
            if count:
                break
    assert len(taken) <= 16


def test_an_error_of_the_work_is_raised_and_nothing_is_left_running():
    ran = []

    def work(item: int) -> int:
        ran.append(item)
        if item == 3:
            raise ValueError("three")
        return 1

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="three"):
        list(run_interruptibly(pool, 1, work, range(1000)))
    assert len(ran) < 20
