"""A stream of shards beside the same shards indexed: images/s, seconds before the first batch, and memory.

    python -m benchmarks.streams [IMAGES] [ROUNDS]

Small images (32 px JPEGs) with captions are written to shards on the spot. Each pass over all of them runs in a process
of its own, in turns: indexed (members read in place, decoded at each use, no cache), streamed from the local files, and
streamed over HTTP from a server in this process. A batch is made as in training: read, shuffled, decoded, tokenized.
Memory is the resident size after a tenth of the pass, and at its end.
"""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import threading
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import numpy as np
import simplejpeg

from benchmarks.train_run import header, row

_SHARDS = 20
_SIDE = 32
_BATCH = 256
_MEASURE = """
import json, sys, time
from pathlib import Path
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

kind, pattern, count, batch_size, side = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6])
began, size = time.perf_counter(), Preprocessing(image_size=side)
tokenizer = train_bpe([f"a small picture of thing number {n}" for n in range(2000)], 600, 77)
if kind == "indexed":
    config = DataConfig(data_file=pattern, cache_gb=0, val_fraction=0.001)
    data = load_data(config, size, 0, lambda line: None, FAST)
    make = BatchMaker(data.train, data.train_store, tokenizer, batch_size=batch_size, seed=0)
else:
    shards = Shards(list_shards(pattern).urls, 0, 4, 1250, 1 << 28)
    how = CaptionInputs(tokenizer)
    make = StreamBatches(shards, how, size, DataConfig(), Log(), batch_size=batch_size, epoch_pairs=count)
make(0)
first, steps, memory = time.perf_counter() - began, make.steps_per_epoch, 0
began = time.perf_counter()
for step in range(1, steps):
    make(step)
    if step == steps // 10:
        memory = psutil.Process().memory_info().rss
seconds = time.perf_counter() - began
print(json.dumps([(steps - 1) * batch_size / seconds, first, memory, psutil.Process().memory_info().rss]))
"""


def main(images: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pattern = write_shards(folder, images)
        handler = partial(_Ranges, directory=scratch)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sources = {
            "indexed": str(folder / pattern),
            "streamed": str(folder / pattern),
            "over HTTP": f"http://127.0.0.1:{server.server_address[1]}/{pattern}",
        }
        found: dict[str, list[list[float]]] = {kind: [] for kind in sources}
        for _ in range(rounds):
            for kind, source in sources.items():
                command = [sys.executable, "-c", _MEASURE, kind, source, *map(str, (images, _BATCH, _SIDE))]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[kind].append(json.loads(done.stdout.splitlines()[-1]))
        server.shutdown()
    print(f"{images:,} images of {_SIDE} px in {_SHARDS} shards, {rounds} rounds")
    names = ("source", "images/s", "of indexed", "seconds to the first batch", "MB after a tenth", "MB at the end")
    print(header(*names))
    reference = median(rate for rate, *_ in found["indexed"])
    for kind, measured in found.items():
        rate, first, begin, end = (median(column) for column in zip(*measured, strict=True))
        print(
            row(
                kind,
                f"{rate:,.0f}",
                f"{rate / reference:.2f}",
                f"{first:.1f}",
                f"{begin / 1e6:.0f}",
                f"{end / 1e6:.0f}",
            )
        )


def write_shards(folder: Path, images: int) -> str:
    """Shards of distinct noise; returns their pattern."""
    random = np.random.default_rng(0)
    for shard in range(_SHARDS):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for number in range(shard * images // _SHARDS, (shard + 1) * images // _SHARDS):
                pixels = random.integers(0, 256, (_SIDE // 4, _SIDE // 4, 3), dtype=np.uint8)
                image = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.repeat(4, 0).repeat(4, 1)), quality=90)
                caption = f"a small picture of thing number {number}".encode()
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
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000, int(sys.argv[2]) if len(sys.argv) > 2 else 3)
