"""One set through one or several encoders: embeddings, and every figure that the set allows.

Shapes: N images, T distinct captions, C classes, D embedding size.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clip_core.data.progress import DecodeProgress, Progress
from clip_core.errors import UsageError
from clip_core.inference.clip import fill
from clip_core.inference.encoder import About, Encoder
from clip_core.inference.evaluation.classification import (
    BINS,
    Predictions,
    ZeroShot,
    average_precision,
    classify,
    zero_shot,
)
from clip_core.inference.evaluation.compare import Comparison, Hits, compare
from clip_core.inference.evaluation.evaluation_set import EvaluationSet
from clip_core.inference.evaluation.features import (
    FeatureScores,
    Parts,
    linear_probe,
    nearest_neighbours,
    split_features,
)
from clip_core.inference.evaluation.retrieval import Ranks, Retrieval, retrieve
from clip_core.inference.gallery import Gallery
from clip_core.inference.gallery_images import absolute
from clip_core.scoring import FloatArray, IntArray, class_prototypes
from clip_core.text import plural, printable

_TEXTS = 32  # that are encoded between two looks at Ctrl-C


@dataclass(frozen=True)
class Options:
    """What is computed besides zero-shot classification and retrieval, and how.

    `templates`: prompts with {} for the class; None for the set's own, else `default_templates`.
    `index`: folder of the stored embeddings; None for one in the user's cache.
    """

    templates: list[str] | None = None
    bins: int = BINS
    seed: int = 0
    probe: bool = False
    neighbours: int | None = None
    index: Path | None = None


@dataclass(frozen=True)
class ModelScores:
    """The figures of one model in one precision; None where the set does not allow one, or it was not asked for."""

    about: About
    images_per_second: float | None  # of those that were embedded now; None where all were stored
    zero_shot: ZeroShot | None = None
    retrieval: Retrieval | None = None
    linear_probe: FeatureScores | None = None
    knn: FeatureScores | None = None


@dataclass(frozen=True)
class Outcome:
    """The figures of a model, and what they were computed from: for comparisons, CSV files and contact sheets."""

    scores: ModelScores
    predictions: Predictions | None = None
    ranks: Ranks | None = None


@dataclass
class Evaluation:
    """Models on one set. `data` is the set without the images that could not be decoded, in `failures`."""

    data: EvaluationSet
    templates: list[str] | None
    options: Options
    failures: dict[Path, str]
    notes: list[str]
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def comparisons(self) -> list[list[Comparison]]:
        """Every model after the first against the first."""
        return [compare_outcomes(self.outcomes[0], other, self.options.seed) for other in self.outcomes[1:]]


def evaluate(
    encoders: Sequence[Encoder], data: EvaluationSet, options: Options, say: Callable[[str], None]
) -> Evaluation:
    """Every encoder on the same images.

    Args:
        say: takes a sentence at a time: progress, and what was assumed.
    Raises:
        UsageError: if no image can be decoded.
        KeyboardInterrupt: saying how many images are embedded and kept.
    """
    found: Evaluation | None = None
    for encoder in encoders:
        gallery, rate = _embed_images(encoder, data.images, options.index, say)
        row_of = {path: row for row, path in enumerate(gallery.paths)}
        if found is None:
            kept = np.array([absolute(path) in row_of for path in data.images], dtype=np.bool_)
            if not kept.any():
                raise UsageError(
                    f"no image of {data.name} can be decoded; the first: {printable(first_failure(gallery.failures))}."
                )
            rest = data if kept.all() else data.subset(kept)
            templates, said = choose_templates(encoder.about, rest, options.templates)
            found = Evaluation(rest, templates, options, gallery.failures, [*data.notes, *said])
        images = gallery.embeddings
        rows = np.array([row_of[absolute(path)] for path in found.data.images], dtype=np.int64)
        if not np.array_equal(rows, np.arange(len(images))):
            images = np.asarray(images[rows])
        found.outcomes.append(_scores(encoder, images, rate, found, say))
    assert found is not None
    return found


def choose_templates(about: About, data: EvaluationSet, given: list[str] | None) -> tuple[list[str] | None, list[str]]:
    """The user's, else the set's own, else the one that a run's training captions are of, else CLIP's 80; said."""
    from clip_core.inference.evaluation.templates import IMAGENET
    from clip_core.text import normalise_caption

    if data.class_names is None:
        return None, ["--templates not used: the set has no classes"] if given else []
    if given or data.templates:
        templates = given or data.templates or []
        if not given and data.pairs:  # captions that are classes, which is said already
            return templates, []
        return templates, [f"{plural(len(templates), 'template')} {'of --templates' if given else 'of the set'}"]
    known = {normalise_caption(caption) for caption in about.classes or ()}
    for template in ("{}", "a photo of a {}"):
        if all(normalise_caption(fill(template, name)) in known for name in data.class_names):
            return [template], [f'template "{template}", as in the training captions of the model']
    return IMAGENET, ["CLIP's 80 templates for ImageNet"]


def embed_classes(encoder: Encoder, names: Sequence[str], templates: Sequence[str], progress: Progress) -> FloatArray:
    """The prototype of each class: the mean of its prompts, normalised.  -> (C, D)"""
    block = max(1, _TEXTS // len(templates))
    prototypes = []
    for start in range(0, len(names), block):
        some = names[start : start + block]
        prompts = [fill(template, name) for template in templates for name in some]
        prototypes.append(class_prototypes(_embed_texts(encoder, prompts, lambda done, total: None), len(some)))
        progress(min(start + block, len(names)) * len(templates), len(names) * len(templates))
    return np.concatenate(prototypes)


def compare_outcomes(first: Outcome, second: Outcome, seed: int) -> list[Comparison]:
    """Top-1 of zero-shot classification, and recall@1 in both directions, as far as both models have them."""
    pairs: list[tuple[str, Hits, Hits, IntArray | None]] = []
    if first.predictions and second.predictions:
        pairs.append(("zero_shot_top1", first.predictions.ranks == 0, second.predictions.ranks == 0, None))
    if first.ranks and second.ranks:
        a, b = first.ranks, second.ranks
        pairs.append(("image_to_text_recall@1", a.image_to_text == 0, b.image_to_text == 0, None))
        pairs.append(("text_to_image_recall@1", a.text_to_image == 0, b.text_to_image == 0, a.caption_images))
    return [compare(what, one, other, groups, seed) for what, one, other, groups in pairs]


def _scores(
    encoder: Encoder, images: FloatArray, rate: float | None, found: Evaluation, say: Callable[[str], None]
) -> Outcome:
    data, options, about = found.data, found.options, encoder.about
    predictions, scores, retrieval, ranks = None, None, None, None
    if data.class_names and found.templates:
        with DecodeProgress(say, "prompts encoded", unit="prompt") as progress:
            classes = embed_classes(encoder, data.class_names, found.templates, progress)
        precisions = average_precision(images, classes, data.target_rows, data.target_classes)
        scores = ZeroShot(float(np.nanmean(precisions)))
        if data.labels is not None:
            predictions = classify(images, classes, data.labels, about.logit_scale)
            scores = zero_shot(predictions, data.class_names, precisions, options.bins, options.seed)
    if data.pairs is not None:
        with DecodeProgress(say, "captions encoded", unit="caption") as progress:
            texts = _embed_texts(encoder, data.pairs.captions, progress)
        retrieval, ranks = retrieve(images, texts, data.pairs, options.seed)
    probe = neighbours = None
    if options.probe or options.neighbours:
        parts = _parts(encoder, images, found, say)
        probe = linear_probe(parts, options.seed) if options.probe else None
        neighbours = nearest_neighbours(parts, options.neighbours, options.seed) if options.neighbours else None
    return Outcome(ModelScores(about, rate, scores, retrieval, probe, neighbours), predictions, ranks)


def _parts(encoder: Encoder, images: FloatArray, found: Evaluation, say: Callable[[str], None]) -> Parts:
    """The set's own train split to train on and the evaluated images to test; else a part of these."""
    data, labels = found.data, found.data.labels
    if labels is None:
        raise UsageError("--linear-probe and --knn need images with one class each; this set has none.")
    if data.train is None:
        parts = split_features(images, labels, found.options.seed)
    else:
        train_labels = data.train.labels
        assert train_labels is not None
        gallery, _ = _embed_images(encoder, data.train.images, found.options.index, say)
        numbers = dict(zip(map(absolute, data.train.images), train_labels.tolist(), strict=True))
        known = np.array([numbers[path] for path in gallery.paths], dtype=np.int64)
        said = f"classifiers on frozen features train on the {len(known):,} images of the train split"
        parts = Parts(np.asarray(gallery.embeddings), known, np.asarray(images), labels, said)
    if parts.said not in found.notes:
        found.notes.append(parts.said)
    return parts


def _embed_images(
    encoder: Encoder, images: Sequence[Path], index: Path | None, say: Callable[[str], None]
) -> tuple[Gallery, float | None]:
    """The images, embedded or taken from the store; and how many were embedded in a second."""
    place = None if index is None else index / encoder.about.identity.replace(":", "-")[:40]
    started = time.monotonic()
    with DecodeProgress(say, "embedded") as progress:
        gallery = Gallery.open(encoder, images, place, progress, lambda: say("waiting for another process."))
    seconds = time.monotonic() - started
    return gallery, gallery.embedded / seconds if gallery.embedded else None


def _embed_texts(encoder: Encoder, texts: Sequence[str], progress: Progress) -> FloatArray:
    """(T, D), some at a time; texts of similar length go together."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    embeds = np.empty((len(texts), encoder.about.embed_dim), np.float32)
    for start in range(0, len(order), _TEXTS):
        rows = order[start : start + _TEXTS]
        embeds[rows] = encoder.encode_texts([texts[row] for row in rows])
        progress(start + len(rows), len(order))
    return embeds


def first_failure(failures: dict[Path, str]) -> str:
    """The first image that could not be decoded, and why, as a part of a sentence."""
    path, reason = next(iter(failures.items()))
    return (reason if str(path) in reason else f"{path}: {reason}").rstrip(".")
