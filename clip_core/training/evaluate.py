"""Evaluation on the validation set: loss, recall in both directions, zero-shot accuracy, and the probe.

Shapes: I distinct images, T distinct captions, C classes, D embedding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_core.data.dataset import PairSet
from clip_core.data.store import Images
from clip_core.data.tokenizer import Captions
from clip_core.model.clip import CLIP
from clip_core.model.cpu_speed import give_back_memory
from clip_core.network import Preprocessing
from clip_core.run.metrics import is_bound, second
from clip_core.run.records import Probe, Recipe
from clip_core.scoring import FloatArray, class_prototypes, retrieval_scores, similarity, top_k, zero_shot_scores
from clip_core.text import normalise_caption
from clip_core.training.device import autocast
from clip_core.training.image_augmentation import network_input
from clip_core.training.loss import ContrastiveLoss, make_loss, matching_pairs
from clip_core.training.processes import Processes

_BATCH = 256
_PROBES = 8
_LOSS_BATCH = 128  # pairs; fixed, so that the validation losses of runs can be compared


@dataclass(frozen=True)
class ValidationSet:
    """The pairs that are evaluated, decoded and with a tokenizer; `classes` for zero-shot classification."""

    pairs: PairSet
    store: Images
    classes: list[str] | None
    tokenizer: Captions
    preprocessing: Preprocessing

    def probe_rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The pairs of the probe: the first that share neither image nor caption."""
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


class Divided(NamedTuple):
    """How the processes of a run embed a set: batches in turn, the same batches however many processes there are.

    together: each makes as many forward passes as the others, as sharded networks need it.
    """

    processes: Processes
    together: bool = False

    def batches(self, count: int) -> Iterator[tuple[slice, bool]]:
        """The batches of this process among `count` rows, and whether it is its own: a spare one of another else."""
        batches = [slice(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]
        rank = self.processes.rank
        for first in range(0, len(batches), rank.size):
            own = first + rank.rank < len(batches)
            if own or self.together:
                yield batches[first + rank.rank if own else first], own


_ALONE = Divided(Processes())


# no_grad: buffers that FSDP2 makes in inference mode cannot be used in training.
@torch.no_grad()
def embed_images(
    model: CLIP,
    store: Images,
    preprocessing: Preprocessing,
    precision: str,
    beat: Callable[[], None],
    divided: Divided = _ALONE,
) -> Tensor:
    """Every image of a store, on the CPU, on rank 0.  -> (I, D) float32"""
    device = model.log_logit_scale.device
    embeds = torch.zeros(len(store), model.config.embed_dim)
    for rows, own in divided.batches(len(store)):
        images = torch.from_numpy(store.get(np.arange(rows.start, rows.stop))).to(device, non_blocking=True)
        with autocast(device, precision):
            found = model.encode_image(network_input(images, preprocessing)).cpu()
        if own:
            embeds[rows] = found
        beat()
    divided.processes.sum_on_first(embeds)
    return embeds


@torch.no_grad()
def embed_captions(
    model: CLIP,
    tokenizer: Captions,
    captions: list[str],
    precision: str,
    beat: Callable[[], None],
    divided: Divided = _ALONE,
) -> Tensor:
    """Captions in their order, on the CPU, on rank 0.  -> (T, D) float32"""
    device = model.log_logit_scale.device
    embeds = torch.zeros(len(captions), model.config.embed_dim)
    for rows, own in divided.batches(len(captions)):
        input_ids = torch.from_numpy(tokenizer.encode(captions[rows])).to(device, non_blocking=True)
        with autocast(device, precision):
            found = model.encode_text(input_ids).cpu()
        if own:
            embeds[rows] = found
        beat()
    divided.processes.sum_on_first(embeds)
    return embeds


@dataclass(frozen=True)
class ValidationEmbeddings:
    """The embeddings of a validation set, on the CPU, float32."""

    images: Tensor  # (I, D)
    texts: Tensor  # (T, D)
    classes: Tensor | None  # (C, D), or more prompts of each class
    logit_scale: Tensor  # ()
    logit_bias: Tensor | None  # ()


@torch.no_grad()
def embed_validation(
    model: CLIP, validation: ValidationSet, precision: str, beat: Callable[[], None], divided: Divided = _ALONE
) -> ValidationEmbeddings:
    """All that runs on the device: batches of images and captions through the model, in evaluation mode.

    Of several processes, which call this together, rank 0 gets the embeddings.
    """
    training = model.training
    model.eval()
    images = embed_images(model, validation.store, validation.preprocessing, precision, beat, divided)

    def embed(captions: list[str]) -> Tensor:
        return embed_captions(model, validation.tokenizer, captions, precision, beat, divided)

    texts, classes = embed(validation.pairs.captions), embed(validation.classes) if validation.classes else None
    model.train(training)
    bias = None if model.logit_bias is None else model.logit_bias.detach().cpu()
    return ValidationEmbeddings(images, texts, classes, model.logit_scale().cpu(), bias)


def evaluate(
    model: CLIP,
    validation: ValidationSet,
    loss: ContrastiveLoss,
    precision: str,
    beat: Callable[[], None] = lambda: None,
    *,
    step: int = 0,
    divided: Divided = _ALONE,
) -> tuple[dict[str, float], Probe | None]:
    """Evaluate on the whole validation set.

    Args:
        model: on its device; not changed.
        beat: called after every batch.
        step: recorded in the probe.
        divided: among which processes.
    Returns:
        The scores: `val_loss`, `image_to_text_recall@K`, `text_to_image_recall@K`, `mean_recall`, `image_mean_cosine`,
        `text_mean_cosine` and, with classes, `zero_shot_top1`, `zero_shot_top5`, `zero_shot_mean_per_class`; the
        bounds of confidence intervals (`_low`, `_high`); and the probe of the fixed pairs. No score and no probe on
        other ranks than 0.
    """
    embeddings = embed_validation(model, validation, precision, beat, divided)
    if not divided.processes.rank.writes:
        return {}, None
    pairs, images, texts = validation.pairs, embeddings.images.numpy(), embeddings.texts.numpy()
    scores = {"val_loss": _validation_loss(embeddings, pairs, loss)}
    scores |= retrieval_scores(images, texts, pairs.pair_images, pairs.pair_captions)
    scores |= {"image_mean_cosine": mean_cosine(images), "text_mean_cosine": mean_cosine(texts)}
    scores["mean_recall"] = float(np.mean([v for k, v in scores.items() if "recall@" in k and not is_bound(k)]))
    if validation.classes and embeddings.classes is not None:
        prototypes = class_prototypes(embeddings.classes.numpy(), len(validation.classes))
        scores |= zero_shot_scores(images, prototypes, _labels(pairs, validation.classes))
    return scores, _probe(step, images, texts, validation)


class Validator:
    """Scores of a model on the validation set and, where there is one, on the second.

    Args:
        recipe: whose loss and precision they are.
        together: the network is sharded.
        beat: called after every batch.
    """

    def __init__(
        self,
        validation: ValidationSet,
        second_validation: ValidationSet | None,
        recipe: Recipe,
        *,
        together: bool,
        beat: Callable[[], None],
    ) -> None:
        self.validation, self.second_validation = validation, second_validation
        self.loss, self.precision = make_loss(recipe.loss), recipe.precision
        self.together, self.beat = together, beat

    def scores(
        self, model: CLIP, step: int, processes: Processes | None = None
    ) -> tuple[dict[str, float], Probe | None]:
        """The scores of both sets, those of the second with keys of their own, and the probe; as `evaluate` does.

        Args:
            processes: those that embed the sets together; rank 0 alone gets scores and a probe.
        """
        divided = Divided(processes or Processes(), self.together)
        scores, probe = evaluate(
            model, self.validation, self.loss, self.precision, self.beat, step=step, divided=divided
        )
        if self.second_validation is not None:
            found, _ = evaluate(model, self.second_validation, self.loss, self.precision, self.beat, divided=divided)
            scores |= second(found)
        if model.log_logit_scale.device.type == "cpu":
            give_back_memory()
        return scores, probe


def mean_cosine(embeds: FloatArray) -> float:
    """Mean cosine of two different rows; near 1 the embeddings have collapsed.  (N, D) -> [-1, 1]"""
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
def _validation_loss(embeddings: ValidationEmbeddings, pairs: PairSet, loss: ContrastiveLoss) -> float:
    """The training loss over the validation pairs, in batches of 128 that are always the same."""
    order = np.random.default_rng(0).permutation(len(pairs.pair_images))
    total = 0.0
    for start in range(0, len(order), _LOSS_BATCH):
        rows = order[start : start + _LOSS_BATCH]
        image_ids, caption_ids = torch.from_numpy(pairs.pair_images[rows]), torch.from_numpy(pairs.pair_captions[rows])
        image_embeds, text_embeds = embeddings.images[image_ids], embeddings.texts[caption_ids]
        matches = matching_pairs(image_ids, caption_ids)
        value, _ = loss(image_embeds, text_embeds, embeddings.logit_scale, matches, embeddings.logit_bias)
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
