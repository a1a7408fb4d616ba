"""Frozen pretrained encoders with trained heads, on real pairs: quality and seconds in all, features included.

    python -m benchmarks.aligned OUT SET_FOLDER ... [--image mobilenet_v3_small] [--text minilm] [--seeds 3] [-- FLAGS]

Every run is clip-train in a process of its own with an empty cache, so that its seconds include decoding and the
features of both encoders. Where the captions are classes, two baselines use the same image features: logistic
regression, and the nearest neighbour by cosine.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.pretrained import pretrained_encoders
from benchmarks.train_run import header, row
from clip_core.data.formats.detect import read_data
from clip_core.data.formats.source import ReadOptions
from clip_core.data.store import EXACT, ImageStore
from clip_core.model.encoders.base import FrozenEncoder
from clip_core.model.encoders.resolve import load_image_encoder
from clip_core.run.metrics import WAYS, quality
from clip_core.run.reader import RunReader
from clip_core.scoring import FloatArray
from clip_core.training.image_augmentation import to_pixel_values

_BATCH = 32
_PROBE_STEPS = 500


def main(out: Path, sets: Sequence[Path], image: str, text: str, seeds: int, flags: Sequence[str]) -> None:
    encoders = pretrained_encoders((image, text))
    print(f"image encoder {image} ({encoders[image].licence}), text encoder {text} ({encoders[text].licence})")
    print(header("set", "seed", "seconds", "step", "recall@1", "recall@5", "recall@10", "zero-shot top-1"))
    for folder in sets:
        rows = [_aligned(out, folder, encoders[image].name, encoders[text].name, seed, flags) for seed in range(seeds)]
        for seed, values in enumerate(rows):
            print(row(folder.name, str(seed), *_texts(values)))
        print(row(folder.name, "mean", *_texts([mean(column) for column in zip(*rows, strict=True)])), flush=True)
        if rows[0][-1] >= 0:
            probe, nearest = _baselines(folder, load_image_encoder(encoders[image].name))
            print(f"{folder.name}, same features: logistic regression {probe:.3f}, nearest neighbour {nearest:.3f}")


def _texts(values: Sequence[float]) -> list[str]:
    seconds, step, *scores = values
    return [f"{seconds:.0f}", f"{step:.0f}", *(f"{score:.3f}" if score >= 0 else "" for score in scores)]


def _aligned(out: Path, folder: Path, image: str, text: str, seed: int, flags: Sequence[str]) -> list[float]:
    """Seconds in all, the best checkpoint's step, recall@1, 5 and 10 (mean of both ways), zero-shot top-1 or -1."""
    run, cache = out / f"{folder.name}-{seed}", out / "cache"
    for old in (run, cache):
        shutil.rmtree(old, ignore_errors=True)
    command = [
        sys.executable, "-m", "clip_core.cli.train", "--data", str(folder / "train.json"),
        "--val-file", str(folder / "val.json"), "--image-encoder", image, "--text-encoder", text,
        "--run-dir", str(run), "--seed", str(seed), *flags,
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"XDG_CACHE_HOME": str(cache)})
    seconds = time.perf_counter() - started
    best = max((line for line in RunReader(run).all_lines() if line["kind"] == "eval"), key=quality)
    recalls = [mean(best[f"{way}_recall@{k}"] for way in WAYS) for k in (1, 5, 10)]
    return [seconds, best["step"], *recalls, best.get("zero_shot_top1", -1.0)]


def _baselines(folder: Path, encoder: FrozenEncoder) -> tuple[float, float]:
    """Top-1 on the validation images of logistic regression and of the nearest training image."""
    sets = []
    for name in ("train.json", "val.json"):
        pairs = read_data(folder / name, ReadOptions()).pairs
        sets.append((_features(encoder, [pair.image for pair in pairs]), [pair.caption for pair in pairs]))
    names = sorted({caption for _, captions in sets for caption in captions})
    (train, _), (val, _) = sets
    train_labels, val_labels = (np.array([names.index(c) for c in captions]) for _, captions in sets)
    nearest = (val @ train.T).argmax(axis=1)
    return _probe(train, train_labels, val, val_labels), float((train_labels[nearest] == val_labels).mean())


def _features(encoder: FrozenEncoder, paths: list[Path]) -> FloatArray:
    assert encoder.info.preprocessing is not None
    store = ImageStore.build(paths, encoder.info.preprocessing, decoder=EXACT)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(paths), _BATCH):
            images = torch.from_numpy(store.get(np.arange(start, min(start + _BATCH, len(paths)))))
            parts.append(F.normalize(encoder(to_pixel_values(images, store.preprocessing)), dim=1))
    return torch.cat(parts).numpy()


def _probe(train: FloatArray, labels: np.ndarray, val: FloatArray, val_labels: np.ndarray) -> float:
    """Multinomial logistic regression by L-BFGS, weight decay chosen on a tenth of the training images."""
    generator = np.random.default_rng(0)
    held = generator.random(len(train)) < 0.1

    def accuracy(fit: np.ndarray, test: FloatArray, truth: np.ndarray, decay: float) -> float:
        x, y = torch.from_numpy(train[fit]), torch.from_numpy(labels[fit])
        layer = torch.nn.Linear(x.shape[1], int(labels.max()) + 1)
        optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            value = F.cross_entropy(layer(x), y) + decay * layer.weight.square().sum()
            torch.autograd.backward(value)
            return value

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return float((layer(torch.from_numpy(test)).argmax(dim=1).numpy() == truth).mean())

    decays = [10.0**exponent for exponent in (-6, -5, -4, -3)]
    best = max(decays, key=lambda decay: accuracy(~held, train[held], labels[held], decay))
    return accuracy(np.ones(len(train), dtype=np.bool_), val, val_labels, best)


if __name__ == "__main__":
    words = sys.argv[1:]
    own, extra = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--image", default="mobilenet_v3_small")
    parser.add_argument("--text", default="minilm")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(own)
    main(given.out, given.sets, given.image, given.text, given.seeds, extra)
