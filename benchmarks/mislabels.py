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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict

from benchmarks.pretrained import pretrained_encoders
from clip_core.data.check import check_data
from clip_core.data.formats.detect import read_data
from clip_core.data.formats.source import ReadOptions
from clip_core.data.mislabels import find_mislabels
from clip_core.inference.clip import open_encoder
from clip_core.inference.encoder import Encoder
from clip_core.inference.evaluation.leaks import trained_on
from clip_core.scoring import FloatArray, IntArray

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


class Remembered:
    """An encoder whose embeddings are computed once and kept in a folder: several ways look at the same pairs."""

    def __init__(self, encoder: Encoder, kept: Path) -> None:
        self.encoder, self.kept = encoder, kept
        self.known = {name: self._load(name) for name in ("images", "texts")}

    def encode_images(self, images: Sequence[Path]) -> FloatArray:
        return self._rows("images", [str(path) for path in images], self.encoder.encode_images)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return self._rows("texts", texts, self.encoder.encode_texts)

    def _rows(self, kind: str, keys: Sequence[str], encode: Callable[[list[str]], FloatArray]) -> FloatArray:
        known = self.known[kind]
        if missing := [key for key in dict.fromkeys(keys) if key not in known]:
            known |= dict(zip(missing, encode(missing), strict=True))
            self.kept.mkdir(parents=True, exist_ok=True)
            (self.kept / f"{kind}.json").write_text(json.dumps(list(known)))
            np.save(self.kept / f"{kind}.npy", np.stack(list(known.values())))
        return np.stack([known[key] for key in keys])

    def _load(self, kind: str) -> dict[str, FloatArray]:
        file = self.kept / f"{kind}.npy"
        if not file.is_file():
            return {}
        return dict(zip(json.loads((self.kept / f"{kind}.json").read_text()), np.load(file), strict=True))


class Found(NamedTuple):
    """Pairs that a way named, those of them that are wrong, all wrong ones; average precision of its ranking; how many
    of the named ones it expects to be wrong."""

    named: int
    right: int
    planted: int
    ranking: float
    expected: float = float("nan")

    @classmethod
    def of(cls, rows: IntArray, ranking: IntArray, wrong: NDArray[np.bool_], expected: float = float("nan")) -> "Found":
        places = np.arange(len(ranking), 0, -1)  # a score that falls along the ranking
        ranked = average_precision_score(wrong[ranking], places)
        return cls(len(rows), int(wrong[rows].sum()), int(wrong.sum()), ranked, expected)


def found_by(model: Path, file: Path, root: Path, cleanlab: str | None) -> dict[str, Found]:
    """Each way on the pairs of one file."""
    wrong = np.array([pair.get("wrong", False) for pair in json.loads(file.read_text())])
    check = check_data(read_data(file, ReadOptions(root)).pairs)
    towers = Remembered(open_encoder(model), model / "embeddings" / file.stem)
    images = towers.encode_images([pair.image for pair in check.pairs])
    texts = towers.encode_texts([pair.caption for pair in check.pairs])
    by_cosine = np.argsort(np.einsum("nd,nd->n", images, texts))
    found = find_mislabels(check, towers, trained_on(model, check.pairs))
    assert found is not None
    ways = {
        "clip-data check": Found.of(found.rows, found.ranking, wrong, found.likelihood.sum()),
        "CLIP score": Found.of(by_cosine[: int(wrong.sum())], by_cosine, wrong),
    }
    if cleanlab and found.agreement is not None:
        ways["cleanlab"] = by_cleanlab(images, np.unique(check.table.caption, return_inverse=True)[1], cleanlab, wrong)
    return ways


def by_cleanlab(images: FloatArray, labels: IntArray, folder: str, wrong: NDArray[np.bool_]) -> Found:
    sys.path.insert(0, folder)
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    how = LogisticRegression(C=10, max_iter=1000)
    probabilities = cross_val_predict(how, images, labels, cv=5, method="predict_proba")
    named = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return Found.of(named, np.argsort(get_label_quality_scores(labels, probabilities)), wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--cleanlab")
    options = parser.parse_args()
    print(
        "| set | planted | model | way | named | expected | precision | recall | average precision |\n"
        + "|---" * 9
        + "|"
    )
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
                    wrong = sum(part[way].expected for part in parts)
                    expected = f"{wrong / named:.0%}" if named and wrong == wrong else "-"
                    ranking = np.mean([part[way].ranking for part in parts])
                    print(
                        f"| {folder.name} | {rate:.0%}: {planted} | {name} | {way} | {named} | {expected} | "
                        f"{precision} | {right / planted:.0%} | {ranking:.2f} |",
                        flush=True,
                    )  # fmt: skip


if __name__ == "__main__":
    main()
