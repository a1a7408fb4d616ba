"""The validation pairs: validation loss, recall both ways, zero-shot accuracy, and a probe to look at.

Shapes: I distinct images, T distinct captions, P pairs, D embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clip_core.data.dataset import PairSet
from clip_core.data.store import ImageStore
from clip_core.data.tokenizer import Tokenizer
from clip_core.model.clip import CLIP
from clip_core.network import Preprocessing
from clip_core.run.records import Probe
from clip_core.scoring import FloatArray, class_prototypes, retrieval_scores, similarity, top_k, zero_shot_scores
from clip_core.text import normalise_caption
from clip_core.training.augment import to_pixel_values
from clip_core.training.device import autocast
from clip_core.training.loss import ContrastiveLoss, matching_pairs

_BATCH = 256
_PROBES = 8
_IN_BATCH_LOSS = 128  # pairs a batch of the validation loss: fixed, so that runs can be compared


@dataclass(frozen=True)
class ValidationSet:
    """What a run is judged by."""

    pairs: PairSet
    store: ImageStore
    classes: list[str] | None
    tokenizer: Tokenizer
    preprocessing: Preprocessing

    def probe_rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The first pairs that share neither image nor caption."""
        rows: list[int] = []
        images: set[int] = set()
        captions: set[int] = set()
        for row, (image, caption) in enumerate(zip(self.pairs.pair_images, self.pairs.pair_captions, strict=True)):
            if int(image) not in images and int(caption) not in captions:
                rows.append(row)
                images.add(int(image))
                captions.add(int(caption))
            if len(rows) == _PROBES:
                break
        return np.array(rows, dtype=np.int64)


@torch.inference_mode()
def embed_images(
    model: CLIP, store: ImageStore, preprocessing: Preprocessing, precision: str, beat: Callable[[], None]
) -> FloatArray:
    """Every image of a store.  -> (I, D)"""
    device = model.log_logit_scale.device
    parts = []
    for start in range(0, len(store), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(store)))
        images = torch.from_numpy(store.get(rows)).to(device, non_blocking=True)
        with autocast(device, precision):
            parts.append(model.encode_image(to_pixel_values(images, preprocessing)).float().cpu().numpy())
        beat()
    return np.concatenate(parts)


@torch.inference_mode()
def embed_captions(model: CLIP, tokenizer: Tokenizer, captions: list[str], precision: str) -> FloatArray:
    """Captions in their order.  -> (T, D)"""
    device = model.log_logit_scale.device
    parts = []
    for start in range(0, len(captions), _BATCH):
        input_ids = torch.from_numpy(tokenizer.encode(captions[start : start + _BATCH])).to(device)
        with autocast(device, precision):
            parts.append(model.encode_text(input_ids).float().cpu().numpy())
    return np.concatenate(parts)


def evaluate(
    model: CLIP,
    validation: ValidationSet,
    loss: ContrastiveLoss,
    precision: str,
    beat: Callable[[], None] = lambda: None,
    *,
    step: int = 0,
) -> tuple[dict[str, float], Probe]:
    """Scores over the whole validation set, and the probe of the fixed pairs."""
    model.eval()
    images = embed_images(model, validation.store, validation.preprocessing, precision, beat)
    texts = embed_captions(model, validation.tokenizer, validation.pairs.captions, precision)
    model.train()
    pairs = validation.pairs
    scores = {"val_loss": _validation_loss(images, texts, pairs, model, loss)}
    scores |= retrieval_scores(images, texts, pairs.pair_images, pairs.pair_captions)
    scores |= {"image_mean_cosine": mean_cosine(images), "text_mean_cosine": mean_cosine(texts)}
    scores["mean_recall"] = float(np.mean([v for k, v in scores.items() if "recall@" in k]))
    if validation.classes:
        class_embeds = embed_captions(model, validation.tokenizer, validation.classes, precision)
        model.train()
        labels = _labels(pairs, validation.classes)
        scores |= zero_shot_scores(images, class_prototypes(class_embeds, len(validation.classes)), labels)
    return scores, _probe(step, images, texts, validation)


def mean_cosine(embeds: FloatArray) -> float:
    """Mean cosine of two different rows; near 1 the tower says the same of everything.  (N, D) -> [-1, 1]"""
    count = len(embeds)
    if count < 2:
        return 0.0
    return float((np.square(embeds.sum(axis=0, dtype=np.float64)).sum() - count) / (count * (count - 1)))


def _labels(pairs: PairSet, classes: list[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The class of each image, from its one caption.  -> (I,)"""
    number = {normalise_caption(name): index for index, name in enumerate(classes)}
    of_caption = np.array([number[normalise_caption(caption)] for caption in pairs.captions], dtype=np.int64)
    labels = np.empty(len(pairs.images), dtype=np.int64)
    labels[pairs.pair_images] = of_caption[pairs.pair_captions]
    return labels


@torch.no_grad()
def _validation_loss(
    images: FloatArray, texts: FloatArray, pairs: PairSet, model: CLIP, loss: ContrastiveLoss
) -> float:
    """The training loss over the validation pairs in fixed batches."""
    order = np.random.default_rng(0).permutation(len(pairs.pair_images))
    scale, bias = model.logit_scale().cpu(), None if model.logit_bias is None else model.logit_bias.cpu()
    total = 0.0
    for start in range(0, len(order), _IN_BATCH_LOSS):
        rows = order[start : start + _IN_BATCH_LOSS]
        image_ids, caption_ids = pairs.pair_images[rows], pairs.pair_captions[rows]
        matches = matching_pairs(torch.from_numpy(image_ids), torch.from_numpy(caption_ids))
        image_embeds, text_embeds = torch.from_numpy(images[image_ids]), torch.from_numpy(texts[caption_ids])
        value, _ = loss(image_embeds, text_embeds, scale, matches, bias)
        total += float(value) * len(rows)
    return total / len(order)


def _probe(step: int, images: FloatArray, texts: FloatArray, validation: ValidationSet) -> Probe:
    rows = validation.probe_rows()
    image_rows, caption_rows = validation.pairs.pair_images[rows], validation.pairs.pair_captions[rows]
    scores = similarity(images[image_rows], texts[caption_rows])
    return Probe(
        step=step,
        images=[str(validation.pairs.images[i]) for i in image_rows],
        captions=[validation.pairs.captions[c] for c in caption_rows],
        similarity=scores.round(5).tolist(),
        image_to_text=top_k(scores, 5)[0].tolist(),
        text_to_image=top_k(np.ascontiguousarray(scores.T), 5)[0].tolist(),
    )
