"""A stream of shards beside the same shards indexed: images/s, seconds before the first batch, and memory.

    python -m benchmarks.streams [IMAGES]

Small images (32 px JPEGs) with captions are written to shards on the spot. Three sources take turns in one process, 20
batches each, until each has given a fifth of the images: indexed (members read in place, decoded at each use, without a
cache), streamed from the local files, and streamed over HTTP from a server in another process. A batch is made as in
training: read, shuffled, decoded, tokenized. Speed is also given by seconds of the CPU, which other work on the machine
changes little. Then a process streams all of them; memory is its resident size after a tenth and at the end.
"""

import io
import json
import multiprocessing
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from benchmarks.train_run import header, row

_SHARDS = 20
_SIDE = 32
_BATCH = 256
_TURN = 20  # batches
_COMMON = """
import json, sys, time
from pathlib import Path
from statistics import median
import psutil
from clip_core.config import DataConfig
from clip_core.data.dataset import load_data
from clip_core.data.stream.lane import Shards
from clip_core.data.stream.shard_list import list_shards
from clip_core.data.tokenizer import train_bpe
from clip_core.network import Preprocessing
from clip_core.training.batches import BatchMaker
from clip_core.training.caption_inputs import CaptionInputs
from clip_core.training.fast_decode import FAST
from clip_core.training.log import Log
from clip_core.training.stream_batches import StreamBatches

local, remote, count, batch_size, side, turn = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:7])
size, steps = Preprocessing(image_size=side), count // batch_size
tokenizer = train_bpe([f"a small image of thing number {n}" for n in range(2000)], 600, 77)

def indexed():
    config = DataConfig(data_file=local, cache_gb=0, val_fraction=0.001)
    data = load_data(config, size, 0, lambda line: None, FAST)
    return BatchMaker(data.train, data.train_store, tokenizer, batch_size=batch_size, seed=0)

def streamed(pattern):
    shards, how = Shards(list_shards(pattern).urls, 0, 4, 1250, 1 << 28), CaptionInputs(tokenizer)
    return StreamBatches(shards, how, size, DataConfig(), Log(), batch_size=batch_size, epoch_pairs=count)
"""
_IN_TURNS = """
makers, first, rates, by_cpu = [], [], [[], [], []], [[], [], []]
for begin in (indexed, lambda: streamed(local), lambda: streamed(remote)):
    began = time.perf_counter()
    makers.append(begin())
    makers[-1](0)
    first.append(time.perf_counter() - began)
for start in range(1, max(steps // 5, 2), turn):
    for make, found, cpu in zip(makers, rates, by_cpu):
        began, used = time.perf_counter(), time.process_time()
        for step in range(start, start + turn):
            make(step)
        found.append(turn * batch_size / (time.perf_counter() - began))
        cpu.append(turn * batch_size / (time.process_time() - used))
print(json.dumps([list(map(median, rates)), list(map(median, by_cpu)), first]))
"""
_ALONE = """
make, memory = streamed(local), []
for step in range(steps):
    make(step)
    if step in (steps // 10, steps - 1):
        memory.append(psutil.Process().memory_info().rss)
print(json.dumps(memory))
"""


def main(images: int) -> None:
    with served_shards(images) as (local, url):
        arguments = [str(local), url, *map(str, (images, _BATCH, _SIDE, _TURN))]
        rates, by_cpu, first = run(_COMMON + _IN_TURNS, arguments)
        begin, end = run(_COMMON + _ALONE, arguments)
    print(f"{images:,} images of {_SIDE} px in {_SHARDS} shards")
    names = ("source", "images/s", "of indexed", "images/s of CPU time", "of indexed", "seconds to the first batch")
    print(header(*names))
    for kind, rate, cpu, seconds in zip(("indexed", "streamed", "over HTTP"), rates, by_cpu, first, strict=True):
        of_indexed = (f"{rate / rates[0]:.2f}", f"{cpu / by_cpu[0]:.2f}")
        print(row(kind, f"{rate:,.0f}", of_indexed[0], f"{cpu:,.0f}", of_indexed[1], f"{seconds:.1f}"))
    print(f"memory of a process that streams all: {begin / 1e6:.0f} MB after a tenth, {end / 1e6:.0f} MB at the end")


def run(program: str, arguments: list[str]) -> Any:
    command = [sys.executable, "-c", program, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


@contextmanager
def served_shards(images: int) -> Iterator[tuple[Path, str]]:
    """The pattern of new shards in a folder of their own, and their address on a server in another process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pattern = write_shards(folder, images)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, theirs), daemon=True)
        server.start()
        yield folder / pattern, f"http://127.0.0.1:{ours.recv()}/{pattern}"
        server.terminate()


def serve(folder: Path, port: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranges, directory=str(folder)))
    port.send(server.server_address[1])
    server.serve_forever()


def write_shards(folder: Path, images: int) -> str:
    """Shards of distinct noise; returns their pattern."""
    random = np.random.default_rng(0)
    for shard in range(_SHARDS):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for number in range(shard * images // _SHARDS, (shard + 1) * images // _SHARDS):
                pixels = random.integers(0, 256, (_SIDE // 4, _SIDE // 4, 3), dtype=np.uint8)
                image = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.repeat(4, 0).repeat(4, 1)), quality=90)
                caption = f"a small image of thing number {number}".encode()
                for suffix, content in ((".jpg", image), (".txt", caption)):
                    info = tarfile.TarInfo(f"{number:08d}{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return f"{{000..{_SHARDS - 1:03d}}}.tar"


class _Ranges(SimpleHTTPRequestHandler):
    """A web server that can begin at an offset, which the one of the standard library cannot."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        size, start = path.stat().st_size, int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        with path.open("rb") as file, suppress(ConnectionError):  # a reader that has seen enough
            file.seek(start)
            self.copyfile(file, self.wfile)

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
