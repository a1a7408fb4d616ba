"""Images a second on one core: open_clip's transform, ours as inference decodes, ours as training decodes.

    python -m benchmarks.decode SET_FOLDER [SIDE ...]

Each reads the same files from the disk's cache, in turn, in rounds; the table has medians of the processor's time.
open_clip's transform ends in normalised floats, ours in 8-bit pixels that the device normalises.

Where the folder has a train.json, a second table says what a short clip-train waits for images: with a decode cache
that is empty, with the one that this run has filled, and with none, so that every use of an image decodes it.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from open_clip.transform import image_transform
from PIL import Image

from benchmarks.train_run import header, row, train
from clip_core.data.image_files import list_folder
from clip_core.data.store import EXACT, ImageStore
from clip_core.network import Preprocessing
from clip_core.run.reader import RunReader
from clip_core.training.fast_decode import FAST

IMAGES = 600
ROUNDS = 7
SIDES = (64, 224)
SHORT = ("--epochs", "2", "--log-every", "5")

Decode = Callable[[Path], Any]


def main(folder: Path, sides: list[int]) -> None:
    torch.set_num_threads(1)
    paths = list(islice(list_folder(folder).images, IMAGES))
    print(header("side", "path", "images/s a core", "times open_clip's", "largest difference", "mean difference"))
    for side in sides:
        square = Preprocessing(image_size=side)
        decoders = _decoders(square)
        seconds = _measure(decoders, paths)
        reference = np.stack([EXACT.decode(path, square) for path in paths]).astype(np.int16)
        for name, taken in seconds.items():
            pixels = None if name.startswith("open_clip") else np.stack([decoders[name](path) for path in paths])
            off = [] if pixels is None else [np.abs(pixels - reference)]
            levels = (f"{off[0].max()} of 255", f"{off[0].mean():.3f}") if off else ("", "")
            speed = len(paths) / median(taken)
            ratio = median(theirs / ours for theirs, ours in zip(seconds["open_clip"], taken, strict=True))
            print(row(side, name, f"{speed:,.0f}", f"{ratio:.2f}", *levels), flush=True)
        print(row(side, "from the decode cache", *_from_cache(paths, square), "", ""))
    if (folder / "train.json").is_file():
        print_waiting(folder)


def print_waiting(folder: Path) -> None:
    """The share of a step spent waiting for images, of real runs with no other flags than SHORT."""
    data = ["--data-file", str(folder / "train.json"), "--val-file", str(folder / "val.json")]
    ways: dict[str, list[str]] = {"cold": [], "warm": [], "none (--cache-gb 0)": ["--cache-gb", "0"]}
    print()
    print(
        header(
            "decode cache", "seconds to the first step", "median wait", "mean wait", "longest wait, shares of a step"
        )
    )
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch  # the decode cache's place, empty
        for number, (way, flags) in enumerate(ways.items()):
            run, began = Path(scratch) / f"run_{number}", time.time()
            train(run, *data, *SHORT, *flags)
            lines = [line for line in RunReader(run).all_lines() if line["kind"] == "train"]
            waits = [line["data_wait"] for line in lines]
            shares = (f"{share:.1%}" for share in (median(waits), mean(waits), max(waits)))
            print(row(way, f"{lines[0]['time'] - began:.1f}", *shares), flush=True)


def _decoders(square: Preprocessing) -> Mapping[str, Decode]:
    return {
        "open_clip": _open_clip(square.image_size, is_train=False),
        "open_clip, training": _open_clip(square.image_size, is_train=True),
        "exact (Pillow)": lambda path: EXACT.decode(path, square),
        "fast (torchvision)": lambda path: FAST.decode(path, square),
    }


def _open_clip(side: int, *, is_train: bool) -> Decode:
    transform = image_transform(side, is_train=is_train)

    def decode(path: Path) -> Any:
        with Image.open(path) as image:
            return transform(image)

    return decode


def _measure(decoders: Mapping[str, Decode], paths: list[Path]) -> dict[str, list[float]]:
    """Seconds of the processor for all images, by round."""
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for number in range(-1, ROUNDS):  # the first round warms up
        for name, decode in decoders.items():
            began = time.process_time()
            for path in paths:
                decode(path)
            if number >= 0:
                seconds[name].append(time.process_time() - began)
    return seconds


def _from_cache(paths: list[Path], square: Preprocessing) -> tuple[str, str]:
    """Batches of 64 in random order, as training takes them."""
    store = ImageStore.build(paths, square, decoder=FAST)
    order = np.random.default_rng(0).permutation(len(paths))
    began, taken = time.process_time(), 0
    while time.process_time() - began < 1:
        for start in range(0, len(order), 64):
            taken += len(store.get(order[start : start + 64]))
    return f"{taken / (time.process_time() - began):,.0f}", ""


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(side) for side in sys.argv[2:]] or list(SIDES))
