"""How well `clip-data check --model` finds wrong captions that were planted, beside a plain CLIP score and cleanlab.

    python -m benchmarks.mislabels OUT SET_FOLDER ... [--peer FOLDER_WITH_CLEANLAB]

Of each set's dataset.json 2 % and 10 % of the pairs get a caption of another image (of another class, where captions
are classes). The models are frozen pretrained encoders (benchmarks/pretrained.py) with heads trained on the faulty
captions: each on one half of the images, to check the other half; and one on all of them, which has seen what it checks.
A plain CLIP score cannot choose its threshold: it gets as many pairs as were planted, which nobody knows in practice.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.pretrained import pretrained_encoders
from benchmarks.train_run import header, row

RATES = (0.02, 0.1)


def plant(folder: Path, rate: float, out: Path) -> list[Path]:
    """Write the two halves, by image, and the whole with planted captions; a third key says which are wrong."""
    pairs = json.loads((folder / "dataset.json").read_text())
    random = np.random.default_rng(0)
    captions = [pair["caption"] for pair in pairs]
    own: dict[str, set[str]] = {}
    for pair in pairs:
        own.setdefault(pair["image"], set()).add(pair["caption"])
    for number in random.permutation(len(pairs))[: round(rate * len(pairs))]:
        image = pairs[number]["image"]
        others = [caption for caption in captions if caption not in own[image]]
        pairs[number] |= {"caption": others[random.integers(len(others))], "wrong": True}
    names = random.permutation(sorted(own)).tolist()
    first = set(names[: len(names) // 2])
    out.mkdir(parents=True, exist_ok=True)
    files = {"a": first, "b": set(names) - first, "all": set(names)}
    for name, chosen in files.items():
        (out / f"{name}.json").write_text(json.dumps([pair for pair in pairs if pair["image"] in chosen]))
    return [out / f"{name}.json" for name in files]


def train(file: Path, root: Path, run: Path) -> None:
    """Heads on frozen encoders; as many epochs as the default, judged on 5 % of the pairs."""
    if (run / "best.json").is_file():
        return
    encoders = pretrained_encoders(("efficientnet_lite0", "minilm"))
    names = ["--image-encoder", encoders["efficientnet_lite0"].name, "--text-encoder", encoders["minilm"].name]
    flags = [
        "--data",
        str(file),
        "--image-root",
        str(root),
        "--run-dir",
        str(run),
        "--val-fraction",
        "0.05",
        "--epochs",
        "8",
        "--eval-every",
        "1000",
    ]
    subprocess.run([sys.executable, "-m", "clip_core.cli.train", *names, *flags], check=True, capture_output=True)


if __name__ == "__main__":
    for each in sys.argv[2:]:
        for rate in RATES:
            out = Path(sys.argv[1]) / Path(each).name / f"{rate:g}"
            for file in plant(Path(each), rate, out):
                train(file, Path(each), out / f"run-{file.stem}")
                print(file, flush=True)
