"""One set through one or several encoders: embeddings, and every figure that the set allows.

Shapes: N images, T distinct captions, C classes, D embedding size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clip_core.errors import UsageError
from clip_core.inference.clip import fill
from clip_core.inference.encoder import About, Encoder
from clip_core.inference.evaluation.caption_probes import CaptionProbes, probe_captions
from clip_core.inference.evaluation.classification import (
    BINS,
    Predictions,
    ZeroShot,
    average_precision,
    classify,
    zero_shot,
)
from clip_core.inference.evaluation.compare import Comparison, Hits, compare
from clip_core.inference.evaluation.embed import embed_images, embed_texts
from clip_core.inference.evaluation.evaluation_set import EvaluationSet
from clip_core.inference.evaluation.features import (
    FeatureScores,
    Parts,
    linear_probe,
    nearest_neighbours,
    split_features,
)
from clip_core.inference.evaluation.retrieval import Ranks, Retrieval, retrieve
from clip_core.inference.gallery_images import absolute
from clip_core.scoring import FloatArray, IntArray
from clip_core.text import plural, printable


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
    hard_negatives: bool = False
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
    hard_negatives: CaptionProbes | None = None


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
        UsageError: if no image can be decoded, or features are to be classified and images have no single class.
        KeyboardInterrupt: saying how many images are embedded and kept.
    """
    if (options.probe or options.neighbours) and data.labels is None:
        raise UsageError(f"--linear-probe and --knn need images with one class each, which {data.name} does not have.")
    if options.hard_negatives and data.pairs is None:
        raise UsageError(f"--hard-negatives needs captions, which {data.name} does not have.")
    places = [absolute(path) for path in data.images]
    found: Evaluation | None = None
    for encoder in encoders:
        gallery, rate = embed_images(encoder, data.images, options.index, say)
        row_of = {path: row for row, path in enumerate(gallery.paths)}
        if found is None:
            kept = np.array([path in row_of for path in places], dtype=np.bool_)
            if not kept.any():
                raise UsageError(
                    f"no image of {data.name} can be decoded; the first: {printable(first_failure(gallery.failures))}."
                )
            rest = data if kept.all() else data.subset(kept)
            places = [place for place, used in zip(places, kept, strict=True) if used]
            templates, said = choose_templates(encoder.about, rest, options.templates)
            found = Evaluation(rest, templates, options, gallery.failures, [*data.notes, *said])
        images = gallery.embeddings
        rows = np.array([row_of[path] for path in places], dtype=np.int64)
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
    predictions, scores, retrieval, ranks, negatives = None, None, None, None, None
    if data.class_names and found.templates:
        classes = embed_texts(encoder, data.class_names, found.templates, options.index, say)
        precisions = average_precision(images, classes, data.target_rows, data.target_classes)
        scores = ZeroShot(float(np.nanmean(precisions)))
        if data.labels is not None:
            predictions = classify(images, classes, data.labels, about.logit_scale)
            scores = zero_shot(predictions, data.class_names, precisions, options.bins, options.seed)
    if data.pairs is not None:
        texts = embed_texts(encoder, data.pairs.captions, ["{}"], options.index, say)
        retrieval, ranks = retrieve(images, texts, data.pairs, options.seed)
        if options.hard_negatives:
            negatives = probe_captions(
                lambda captions: embed_texts(encoder, captions, ["{}"], options.index, say),
                images, texts, data.pairs, options.seed,
            )  # fmt: skip
    probe = neighbours = None
    if options.probe or options.neighbours:
        parts = _parts(encoder, images, found, say)
        probe = linear_probe(parts, options.seed) if options.probe else None
        neighbours = nearest_neighbours(parts, options.neighbours, options.seed) if options.neighbours else None
    return Outcome(ModelScores(about, rate, scores, retrieval, probe, neighbours, negatives), predictions, ranks)


def _parts(encoder: Encoder, images: FloatArray, found: Evaluation, say: Callable[[str], None]) -> Parts:
    """The set's own train split to train on and the evaluated images to test; else a part of these."""
    data, labels = found.data, found.data.labels
    assert labels is not None
    if data.train is None:
        parts = split_features(images, labels, found.options.seed)
    else:
        train_labels = data.train.labels
        assert train_labels is not None
        gallery, _ = embed_images(encoder, data.train.images, found.options.index, say)
        numbers = dict(zip(map(absolute, data.train.images), train_labels.tolist(), strict=True))
        known = np.array([numbers[path] for path in gallery.paths], dtype=np.int64)
        said = f"classifiers on frozen features train on the {len(known):,} images of the train split"
        parts = Parts(np.asarray(gallery.embeddings), known, np.asarray(images), labels, said)
    if parts.said not in found.notes:
        found.notes.append(parts.said)
    return parts


def first_failure(failures: dict[Path, str]) -> str:
    """The first image that could not be decoded, and why, as a part of a sentence."""
    path, reason = next(iter(failures.items()))
    return (reason if str(path) in reason else f"{path}: {reason}").rstrip(".")
