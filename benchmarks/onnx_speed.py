"""A bundle of the shape of ViT-B-32 beside open_clip in eager fp32, which is 1.00; random weights, ways in turn.

python -m benchmarks.onnx_speed FOLDER [ROUNDS]

FOLDER keeps the weights and the bundle for the next time. The load of the machine is printed beside the tables.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import open_clip
import torch

from benchmarks.train_run import header, row
from clip_core.data.synthetic import create_synthetic
from clip_core.inference.bundle import is_bundle, read_manifest
from clip_core.inference.encoder import cores
from clip_core.inference.manifest import PRECISIONS, Precision, onnx_files
from export.bench import BATCHES, alternate
from export.bundle import export_bundle
from export.parity import torch_encode
from export.sessions import Array, Encode, open_onnx

MODEL = "ViT-B-32"
END = 49407
_CLASSIFY = """
import sys, time
import open_clip, torch
from PIL import Image
model, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
model.load_state_dict(torch.load(sys.argv[1], weights_only=True, mmap=True))
with torch.inference_mode():
    image = model.eval().encode_image(transform(Image.open(sys.argv[2]).convert("RGB"))[None])
    texts = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(["a red circle", "a blue square"]))
"""


def main(folder: Path, rounds: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(cores())
    weights, photos, bundle = folder / "weights.pt", folder / "shapes", folder / "bundle"
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL).eval()
    if not is_bundle(bundle):
        torch.save(model.state_dict(), weights)
        create_synthetic(photos / "dataset.json", count=40, seed=0, size=224)
        export_bundle(
            weights, bundle, images=photos, model_name=MODEL, precisions=PRECISIONS, accept_loss=True, say=print
        )
    model.load_state_dict(torch.load(weights, weights_only=True, mmap=True))
    print(f"{cores()} cores, load {os.getloadavg()[0]:.1f}, {rounds} rounds; speed relative to open_clip in fp32")
    print(header("tower", "precision", "least cosine", *(f"batch {batch}" for batch in BATCHES)))
    manifest = read_manifest(bundle)
    towers = {
        "images": (torch_encode(normalised(model.encode_image)), *images()),
        "captions of 5 to 20 tokens": (torch_encode(normalised(model.encode_text)), *captions()),
    }
    for place, (name, (eager, theirs, ours)) in enumerate(towers.items()):
        table: dict[Precision, list[str]] = {each: [] for each in PRECISIONS}
        for batch in BATCHES:
            ways: dict[str, Encode] = {"open_clip": always(eager, theirs[:batch])}
            ways |= {
                each: always(open_onnx(bundle / onnx_files(each)[place]), trimmed(ours[:batch])) for each in PRECISIONS
            }
            seconds = alternate(ways, theirs[:batch], rounds)
            for each in PRECISIONS:
                table[each].append(f"{seconds['open_clip'] / seconds[each]:.2f}")
        for precision, cells in table.items():
            files = [r for r in manifest.variant(precision).parity.rows if r.file == onnx_files(precision)[place]]
            print(row(name, precision, f"{min(r.least_cosine for r in files):.5f}", *cells))
    whole_processes(bundle, weights, next(photos.rglob("*.png")), max(3, rounds // 2))


def whole_processes(bundle: Path, weights: Path, image: Path, rounds: int) -> None:
    """One image classified among two captions, from the start of the process to its end."""
    classify = ["-m", "clip_core.cli.infer", "classification", "--model", str(bundle), "--image", str(image)]
    named = ["--classes", "a red circle", "a blue square", "--precision"]
    ways = {"open_clip": ["-c", _CLASSIFY, str(weights), str(image)]}
    ways |= {f"clip-infer, {each}": [*classify, *named, each] for each in PRECISIONS}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, command in ways.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times[name].append(time.perf_counter() - started)
    print("\n" + header("one image, whole process", "median seconds", "relative to open_clip"))
    for name, values in times.items():
        print(row(name, f"{median(values):.2f}", f"{median(times['open_clip']) / median(values):.1f}"))


def images() -> tuple[Array, Array]:
    pixels = np.random.default_rng(0).standard_normal((BATCHES[-1], 3, 224, 224)).astype(np.float32)
    return pixels, pixels


def captions() -> tuple[Array, Array]:
    """Token ids padded with zeros to 77, as open_clip takes them; and the same for `trimmed`."""
    rng = np.random.default_rng(0)
    ids = np.zeros((BATCHES[-1], 77), np.int64)
    for caption in ids:
        length = int(rng.integers(5, 21))
        caption[:length] = [49406, *rng.integers(300, 40000, length - 2), END]
    return ids, ids


def trimmed(inputs: Array) -> Array:
    """Captions without the padding that all of them have, as clip-infer's tokenizer gives them."""
    return inputs if inputs.ndim == 4 else inputs[:, : int((inputs == END).argmax(axis=1).max()) + 1]


def always(encode: Encode, inputs: Array) -> Encode:
    return lambda _: encode(inputs)


def normalised(encode: Any) -> Any:
    return lambda inputs: encode(inputs, normalize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10)
