"""How well `clip-data check --model` finds wrong captions that were planted, beside a plain CLIP score and cleanlab.

    python -m benchmarks.mislabels OUT SET_FOLDER ... [--cleanlab FOLDER]

FOLDER is where `pip install --target FOLDER --no-deps cleanlab` put it.
Of each set's dataset.json 2 % and 10 % of the pairs get a caption of another image (of another class, where captions
are classes). The models are frozen pretrained encoders (benchmarks/pretrained.py) with heads trained on the faulty
captions: each on one half of the images, to check the other half; and one on all of them, which has seen what it
checks. A plain CLIP score cannot choose its threshold: it gets as many pairs as were planted, which nobody knows in
practice. cleanlab gets the class probabilities of a logistic regression on the same embeddings, of five folds.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.pretrained import pretrained_encoders
from clip_core.data.check import Check, check_data
from clip_core.data.formats.detect import read_data
from clip_core.data.formats.source import ReadOptions
from clip_core.data.mislabels import find_mislabels
from clip_core.inference.clip import open_encoder
from clip_core.inference.encoder import Encoder

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
    """Heads on frozen encoders; as many epochs as the default, evaluated on 5 % of the pairs."""
    if (run / "best.json").is_file():
        return
    encoders = pretrained_encoders(("efficientnet_lite0", "minilm"))
    names = ["--image-encoder", encoders["efficientnet_lite0"].name, "--text-encoder", encoders["minilm"].name]
    flags = [
        "--data", str(file), "--image-root", str(root), "--run-dir", str(run), "--val-fraction", "0.05",
        "--epochs", "8", "--eval-every", "1000",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "clip_core.cli.train", *names, *flags], check=True, capture_output=True)


def found_by(model: Path, file: Path, root: Path, cleanlab: str | None) -> dict[str, tuple[int, int, int]]:
    """For each way: pairs that it names, those of them that are wrong, and all that are wrong."""
    wrong = np.array([pair.get("wrong", False) for pair in json.loads(file.read_text())])
    reading = read_data(file, ReadOptions(root))
    check, encoder = check_data(reading.pairs), open_encoder(model)
    found = find_mislabels(check, encoder)
    assert found is not None
    cosines = plain_scores(check, encoder)
    ways = {"clip-data check": found.rows, "CLIP score": np.argsort(cosines)[: int(wrong.sum())]}
    if cleanlab and found.classes:
        ways["cleanlab"] = by_cleanlab(check, encoder, cleanlab)
    return {name: (len(rows), int(wrong[rows].sum()), int(wrong.sum())) for name, rows in ways.items()}


def plain_scores(check: Check, encoder: Encoder) -> np.ndarray:
    images = encoder.encode_images([pair.image for pair in check.pairs])
    texts = encoder.encode_texts([pair.caption for pair in check.pairs])
    return np.asarray(np.einsum("nd,nd->n", images, texts))


def by_cleanlab(check: Check, encoder: Encoder, folder: str) -> np.ndarray:
    sys.path.insert(0, folder)
    from cleanlab.filter import find_label_issues
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    images = encoder.encode_images([pair.image for pair in check.pairs])
    labels = np.unique(check.table.caption, return_inverse=True)[1]
    how = LogisticRegression(C=10, max_iter=1000)
    probabilities = cross_val_predict(how, images, labels, cv=5, method="predict_proba")
    return np.asarray(find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--cleanlab")
    options = parser.parse_args()
    print("| set | planted | model | way | named | precision | recall |\n|---|---|---|---|---|---|---|", flush=True)
    for folder in options.sets:
        for rate in RATES:
            out = options.out / folder.name / f"{rate:g}"
            files = plant(folder, rate, out)
            for file in files:
                train(file, folder, out / f"run-{file.stem}")
            a, b, whole = (out / f"run-{file.stem}" for file in files)
            for name, checks in (
                ("not seen", ((a, files[1]), (b, files[0]))),
                ("trained on them", ((whole, files[2]),)),
            ):
                parts = [found_by(model, file, folder, options.cleanlab) for model, file in checks]
                for way in parts[0]:
                    named, right, planted = (sum(part[way][n] for part in parts) for n in range(3))
                    precision = f"{right / named:.0%}" if named else "-"
                    print(
                        f"| {folder.name} | {rate:.0%}: {planted} | {name} | {way} | {named} | {precision} | "
                        f"{right / planted:.0%} |",
                        flush=True,
                    )  # fmt: skip


if __name__ == "__main__":
    main()
