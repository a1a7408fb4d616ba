"""open_clip on a small set for a given time: its own class, tokenizer, transforms, loss, optimiser and schedule.

    python -m benchmarks.open_clip_peer SET_FOLDER [--lr RATE] [--minutes 10] [--seed 0]

Prints one JSON object: the scores of the last evaluation and of the best. Without --lr every number is open_clip's
default, a warm-up of 10,000 steps among them; with it the warm-up is a tenth of the steps that the time allows. Where
there is a choice it is made in open_clip's favour: bf16 (its own default, fp16, is for GPUs), transparent images on
white as ours are, and a clock that runs during the steps alone, so that decoding, cropping, tokens and evaluations are
free.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import image_transform
from open_clip_train.params import parse_args
from open_clip_train.scheduler import cosine_lr
from PIL import Image
from torch import Tensor

from clip_core.data.dataset import PairSet, few_classes
from clip_core.data.formats.detect import read_data
from clip_core.data.preprocess import load_image
from clip_core.model.cpu_speed import use_all_cores
from clip_core.scoring import FloatArray, class_prototypes, retrieval_scores, zero_shot_scores
from clip_core.text import normalise_caption

NAME = f"open_clip {version('open_clip_torch')}"
DEFAULTS: Any = parse_args(["--model", "ViT"])  # what its command line says where nothing is said
SIDE, PATCH, WIDTH, HEADS, LAYERS = 64, 8, 256, 4, 6
CONTEXT = 77
_LARGEST_LOG_SCALE = float(np.log(100))
_WARMUP = 0.1  # share of the steps, where a rate is given
_EVALUATIONS = 10
_EVALUATED_AT_ONCE = 256


def make_model(context_length: int = CONTEXT) -> Any:
    """Its class, with its own initial weights; the vocabulary is CLIP's 49,408 tokens."""
    vision = CLIPVisionCfg(layers=LAYERS, width=WIDTH, head_width=WIDTH // HEADS, patch_size=PATCH, image_size=SIDE)
    text = CLIPTextCfg(context_length=context_length, width=WIDTH, heads=HEADS, layers=LAYERS)
    return CLIP(WIDTH, vision, text, output_dict=True)


def make_optimiser(model: torch.nn.Module, lr: float = DEFAULTS.lr) -> torch.optim.AdamW:
    """AdamW with its defaults; vectors, norms, biases and the logit scale do not decay."""
    decayed: list[torch.nn.Parameter] = []
    whole: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        kept = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (whole if kept else decayed).append(parameter)
    return torch.optim.AdamW(
        [{"params": whole, "weight_decay": 0.0}, {"params": decayed, "weight_decay": DEFAULTS.wd}],
        lr=lr,
        betas=(DEFAULTS.beta1, DEFAULTS.beta2),
        eps=DEFAULTS.eps,
    )


def backward(model: Any, loss: ClipLoss, images: Tensor, tokens: Tensor, *, bf16: bool = True) -> Tensor:
    """Forward, loss and backward, as its `train_one_epoch` has them; returns the loss."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        value = loss(**model(images, tokens), output_dict=True)["contrastive_loss"]
    value.backward()
    detached: Tensor = value.detach()
    return detached


@torch.no_grad()
def clamp_logit_scale(model: Any) -> None:
    model.logit_scale.clamp_(0, _LARGEST_LOG_SCALE)


@dataclass(frozen=True)
class Pairs:
    """Images in memory and tokens, by the rows of a PairSet."""

    rows: PairSet
    images: list[Image.Image]
    tokens: Tensor  # (T, CONTEXT)

    @classmethod
    def read(cls, file: Path, tokenizer: SimpleTokenizer) -> "Pairs":
        rows = PairSet.from_pairs(read_data(file).pairs)
        return cls(rows, [load_image(path) for path in rows.images], tokenizer(rows.captions))

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Without end: epochs in random order, the rest that fills no batch dropped, as its loader does."""
        transform = image_transform(SIDE, is_train=True)
        dice = np.random.default_rng(seed)
        size = min(DEFAULTS.batch_size, len(self.rows))
        while True:
            order = dice.permutation(len(self.rows))
            for start in range(0, len(order) - size + 1, size):
                batch = order[start : start + size]
                images = torch.stack([transform(self.images[row]) for row in self.rows.pair_images[batch]])
                yield images, self.tokens[self.rows.pair_captions[batch]]


class Judge:
    """The scores that clip-train gives, from the same functions, of images prepared by its own transform."""

    def __init__(self, val: Pairs, classes: list[str] | None, tokenizer: SimpleTokenizer) -> None:
        transform = image_transform(SIDE, is_train=False)
        self.val, self.classes = val, classes
        self.images = torch.stack([transform(image) for image in val.images])
        self.class_tokens = tokenizer(classes) if classes else None

    def scores(self, model: Any) -> dict[str, float]:
        model.eval()
        images, texts = embed(model.encode_image, self.images), embed(model.encode_text, self.val.tokens)
        rows = self.val.rows
        scores = retrieval_scores(images, texts, rows.pair_images, rows.pair_captions)
        scores["mean_recall"] = float(np.mean(list(scores.values())))
        if self.classes:
            prototypes = class_prototypes(embed(model.encode_text, self.class_tokens), len(self.classes))
            scores |= zero_shot_scores(images, prototypes, self._labels(self.classes))
        model.train()
        return scores

    def _labels(self, classes: list[str]) -> Any:
        """The class of each image: its one caption."""
        number = {normalise_caption(name): index for index, name in enumerate(classes)}
        rows = self.val.rows
        labels = np.empty(len(rows.images), dtype=np.int64)
        labels[rows.pair_images] = [number[normalise_caption(rows.captions[row])] for row in rows.pair_captions]
        return labels


@torch.inference_mode()
def embed(encode: Any, inputs: Any) -> FloatArray:
    """Unit vectors.  (N, ...) -> (N, D)"""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = [encode(part, normalize=True).float() for part in inputs.split(_EVALUATED_AT_ONCE)]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)


def train(folder: Path, lr: float | None, minutes: float, seed: int) -> dict[str, Any]:
    """Train on train.json for so long, evaluated on val.json; returns what is printed."""
    use_all_cores()
    torch.manual_seed(seed)
    tokenizer = SimpleTokenizer()
    pairs, val = (Pairs.read(folder / name, tokenizer) for name in ("train.json", "val.json"))
    judge = Judge(val, few_classes(pairs.rows, val.rows), tokenizer)
    peak = lr or DEFAULTS.lr
    model, loss = make_model(), ClipLoss()
    optimiser = make_optimiser(model, peak)
    batches = pairs.batches(seed)
    model.train()

    total, clock, step = 60 * minutes, 0.0, 0
    pace = trial_seconds(model, loss, *next(batches))
    steps = max(round(total / pace), 1)
    evaluations: list[dict[str, float]] = []
    due = [total * (number + 1) / _EVALUATIONS for number in range(_EVALUATIONS - 1)]
    while step < steps:
        images, tokens = next(batches)
        began = time.perf_counter()
        warmup = DEFAULTS.warmup if lr is None else round(_WARMUP * steps)
        cosine_lr(optimiser, peak, warmup, steps)(step)
        optimiser.zero_grad()
        backward(model, loss, images, tokens)
        optimiser.step()
        clamp_logit_scale(model)
        clock += time.perf_counter() - began
        step += 1
        steps = step + max(round((total - clock) * step / clock), 0)  # so many fit, by the pace so far
        if step == steps or (due and clock >= due[0]):
            due = [seconds for seconds in due if seconds > clock]
            evaluations.append({"step": step, "train_seconds": round(clock, 2), **judge.scores(model)})
    return {
        "version": NAME,
        "steps": step,
        "last": evaluations[-1],
        "best": max(evaluations, key=lambda scores: scores.get("zero_shot_top1", scores["mean_recall"])),
    }


def trial_seconds(model: Any, loss: ClipLoss, images: Tensor, tokens: Tensor) -> float:
    """Seconds of a step, from the second of two without an update, so that start-up costs are not measured."""
    for _ in range(2):
        began = time.perf_counter()
        backward(model, loss, images, tokens)
        model.zero_grad()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.open_clip_peer")
    parser.add_argument("folder", type=Path, help="with train.json and val.json")
    parser.add_argument("--lr", type=float, help="peak learning rate (default: open_clip's, and its warm-up)")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(train(given.folder, given.lr, given.minutes, given.seed)))


if __name__ == "__main__":
    main()
