"""The figures of clip-infer evaluate against CLIP_benchmark's own functions, on the same embeddings.

    pip install --no-deps clip-benchmark scikit-learn
    python -m benchmarks.clip_benchmark_peer [--model MODEL --data DATA]

CLIP_benchmark evaluates a model that looks the embeddings up: its evaluation loops run, and not only its formulas.
Random embeddings of 5,000 images x 100 classes x 8 templates and of 1,000 images x 5 captions; with --model and --data
also those of a real model on a real set.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from torch import Tensor

from clip_core.data.dataset import PairSet
from clip_core.data.formats.detect import read_data
from clip_core.data.formats.source import ReadOptions
from clip_core.inference.clip import open_encoder
from clip_core.inference.evaluation import evaluation_set as sets
from clip_core.inference.evaluation.classification import average_precision, classify, zero_shot
from clip_core.inference.evaluation.retrieval import retrieve
from clip_core.scoring import FloatArray, IntArray, class_prototypes, l2_normalise

_BATCH = 64


class LookUp(torch.nn.Module):
    """A model whose images and texts are rows of stored embeddings."""

    def __init__(self, images: FloatArray, texts: FloatArray) -> None:
        super().__init__()
        self.images, self.texts = torch.from_numpy(images), torch.from_numpy(texts)

    def encode_image(self, rows: Tensor) -> Tensor:
        return self.images[rows]

    def encode_text(self, rows: Tensor) -> Tensor:
        return self.texts[rows]


class Batches:
    """What CLIP_benchmark takes for a data loader: batches of image rows with labels or captions."""

    def __init__(self, targets: Sequence[object], classes: list[str] | None) -> None:
        self.targets, self.classes = targets, classes
        self.dataset = self

    def __iter__(self) -> Iterator[tuple[Tensor, object]]:
        for start in range(0, len(self.targets), _BATCH):
            targets = list(self.targets[start : start + _BATCH])
            rows = torch.arange(start, start + len(targets))
            yield rows, torch.tensor(targets) if self.classes else targets


def _accuracy(output: Tensor, target: Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """CLIP_benchmark's `accuracy`, whose 1.6.2 fails with NumPy 2.4: it calls float() on an array of one value."""
    ranked = output.topk(max(topk), dim=1, largest=True, sorted=True).indices
    return [(ranked[:, :k] == target[:, None]).any(dim=1).float().mean().item() for k in topk]


def classification(images: FloatArray, prompts: FloatArray, labels: IntArray, classes: int) -> dict[str, float]:
    """The largest difference of each figure.  (N, D), (templates x C, D), (N,)"""
    names = [f"class{number:04d}" for number in range(classes)]
    templates = [f"template{number} {{c}}" for number in range(len(prompts) // classes)]
    texts = [template.format(c=name) for template in templates for name in names]
    number_of = {text: number for number, text in enumerate(texts)}

    def tokenizer(words: list[str]) -> Tensor:
        return torch.tensor([number_of[word] for word in words])

    zeroshot_classification.accuracy = _accuracy
    peer = zeroshot_classification.evaluate(
        LookUp(images, prompts), Batches(labels.tolist(), names), tokenizer, names, templates, "cpu", amp=False
    )
    prototypes = class_prototypes(prompts, classes)
    rows = np.arange(len(images))
    precisions = average_precision(images, prototypes, rows, labels)
    ours = zero_shot(classify(images, prototypes, labels, 100.0), names, precisions, 15, 0)
    scores = 100.0 * torch.from_numpy(images) @ torch.from_numpy(prototypes).T
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels), classes)
    theirs = zeroshot_classification.average_precision_per_class(scores, targets).numpy()
    pairs = {
        "acc1": (ours.top1, peer["acc1"]),
        "acc5": (ours.top5, peer["acc5"]),
        "mean_per_class_recall": (ours.mean_per_class, peer["mean_per_class_recall"]),
    }
    differences = {what: abs(a - b) for what, (a, b) in pairs.items() if a is not None}
    held = ~np.isnan(precisions)
    return differences | {"average precision of a class": float(np.abs(precisions - theirs)[held].max())}


def retrieval(images: FloatArray, texts: FloatArray, pairs: PairSet) -> dict[str, float]:
    """The largest difference of each recall.  (I, D), (T, D)"""
    captions = [pairs.pair_captions[pairs.pair_images == row].tolist() for row in range(len(images))]
    peer = zeroshot_retrieval.evaluate(
        LookUp(images, texts), Batches(captions, None), torch.tensor, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    ours, _ = retrieve(images, texts, pairs, 0)
    directions = (("text_retrieval", ours.image_to_text), ("image_retrieval", ours.text_to_image))
    return {
        f"{name}_recall@{k}": abs(value - peer[f"{name}_recall@{k}"])
        for name, way in directions
        for k, value in way.recall.items()
    }


def random_sets() -> Iterator[tuple[str, dict[str, float]]]:
    rng = np.random.default_rng(0)

    def near(centres: FloatArray, spread: float) -> FloatArray:
        return l2_normalise((centres + spread * rng.normal(size=centres.shape)).astype(np.float32))

    classes = l2_normalise(rng.normal(size=(100, 64)).astype(np.float32))
    labels = rng.integers(0, 100, 5000)
    prompts = near(np.tile(classes, (8, 1)), 0.1)
    yield "5,000 random images x 100 classes", classification(near(classes[labels], 0.3), prompts, labels, 100)
    images = l2_normalise(rng.normal(size=(1000, 64)).astype(np.float32))
    pairs = PairSet([], [], np.repeat(np.arange(1000), 5), np.arange(5000))
    yield "1,000 random images x 5 captions", retrieval(images, near(np.repeat(images, 5, axis=0), 0.3), pairs)


def real_sets(model: Path, data: Path) -> Iterator[tuple[str, dict[str, float]]]:
    encoder = open_encoder(model)
    found = sets.from_reading(read_data(data, ReadOptions(class_template="{}")), None, print)
    images = encoder.encode_images(found.images)
    if found.labels is not None and found.class_names:
        prompts = encoder.encode_texts(found.class_names)
        yield f"{data}, classes", classification(images, prompts, found.labels, len(found.class_names))
    elif found.pairs:
        yield f"{data}, pairs", retrieval(images, encoder.encode_texts(found.pairs.captions), found.pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    for name, differences in [*random_sets(), *(real_sets(given.model, given.data) if given.model else ())]:
        print(name)
        for what, value in differences.items():
            print(f"  {what:<30} differs by {value:.1e}")


if __name__ == "__main__":
    main()
