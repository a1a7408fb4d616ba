"""Questions to the inference server about whole sets: search with weighted terms, classification of many images.

N rows of the gallery, D embedding size, C classes.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field

from clip_core.errors import UsageError
from clip_core.inference.clip import TEMPLATE, CLIPInference, fill
from clip_core.inference.encoder import Encoder
from clip_core.inference.gallery import OpenGalleries
from clip_core.network import Frozen
from clip_core.scoring import FloatArray, class_prototypes, l2_normalise, similarity, softmax, top_k

Progress = Callable[[int, int], None]  # how many images are embedded, and how many will be

_CHUNK = 4096  # images compared with the classes at once


class Term(Frozen):
    """A part of a query: a text or an image, and its weight; a negative weight searches away from it."""

    text: str | None = None
    image: Path | None = None
    weight: float = 1.0


class Search(Frozen):
    """Rank the images of a folder or a list, or a list of texts, by their similarity to weighted terms.

    The query is the weighted sum of the terms' embeddings, L2-normalised; with one term it is that embedding.

    Answer: `items` (paths or texts, best first) and `similarities`; `total`, how many were ranked; `ranks`, the rank
    (from 1) and the similarity of each of `expected` that is in the gallery, however far down; `skipped`, how many
    images could not be decoded; `milliseconds`, to embed the query and rank, when the model is warm.
    """

    op: Literal["search"]
    terms: list[Term] = Field(min_length=1)
    image_dir: Path | None = None
    images: list[Path] | None = None
    texts: list[str] | None = None
    expected: list[str] = Field(default_factory=list)
    top_k: Annotated[int, Field(ge=1)] = 100

    def answer(self, model: CLIPInference, galleries: OpenGalleries, progress: Progress) -> dict[str, Any]:
        if sum(place is not None for place in (self.image_dir, self.images, self.texts)) != 1:
            raise UsageError("a search takes one of image_dir, images and texts.")
        names, rows, skipped = self._gallery(model, galleries, progress)
        _warm_up(model, self.terms)
        began = time.perf_counter()
        query = query_of(model.encoder, self.terms)
        scores = similarity(query, rows)
        order, values = top_k(scores, self.top_k)
        milliseconds = 1000 * (time.perf_counter() - began)
        return {
            "items": [names[row] for row in order[0]],
            "similarities": values[0].tolist(),
            "total": len(names),
            "ranks": _ranks(names, scores[0], self.expected),
            "skipped": skipped,
            "milliseconds": milliseconds,
        }

    def _gallery(
        self, model: CLIPInference, galleries: OpenGalleries, progress: Progress
    ) -> tuple[list[str], FloatArray, int]:
        """Names and embeddings (N, D) of what is searched, and how many images could not be decoded."""
        if self.texts is not None:
            return self.texts, _texts_of(model, tuple(self.texts)), 0
        gallery = galleries.get(self.image_dir or self.images or [], progress)
        return [str(path) for path in gallery.paths], np.asarray(gallery.embeddings), len(gallery.failures)


class ClassificationSet(Frozen):
    """Classify many images.

    Answer: `images` that could be decoded; for each, `predicted` (an index of `classes`) and its `probabilities`;
    `skipped`; `milliseconds` without decoding and embedding, which are stored.
    """

    op: Literal["classification_set"]
    images: list[Path]
    classes: list[str] = Field(min_length=2)
    templates: list[str] = Field(default_factory=lambda: [TEMPLATE], min_length=1)

    def answer(self, model: CLIPInference, galleries: OpenGalleries, progress: Progress) -> dict[str, Any]:
        encoder = model.encoder
        gallery = galleries.get(self.images, progress)
        began = time.perf_counter()
        texts = [fill(template, name) for template in self.templates for name in self.classes]
        classes = class_prototypes(encoder.encode_texts(texts), len(self.classes))
        predicted: list[int] = []
        certain: list[float] = []
        embeddings = gallery.embeddings
        for start in range(0, len(gallery), _CHUNK):
            scores = encoder.about.logit_scale * similarity(embeddings[start : start + _CHUNK], classes)
            probabilities = softmax(scores)
            best = probabilities.argmax(axis=1)
            predicted += best.tolist()
            certain += np.take_along_axis(probabilities, best[:, None], axis=1)[:, 0].tolist()
        return {
            "images": [str(path) for path in gallery.paths],
            "predicted": predicted,
            "probabilities": certain,
            "skipped": len(gallery.failures),
            "milliseconds": 1000 * (time.perf_counter() - began),
        }


def query_of(encoder: Encoder, terms: Sequence[Term]) -> FloatArray:
    """The weighted sum of the terms' embeddings, L2-normalised.  -> (1, D)

    Raises:
        UsageError: if a term is neither a text nor an image, or the terms cancel each other.
        ImageError: if an image cannot be decoded.
    """
    total = np.zeros((1, encoder.about.embed_dim), np.float32)
    for term in terms:
        if (term.text is None) == (term.image is None):
            raise UsageError("a term of a query is either a text or an image.")
        one = encoder.encode_texts([term.text]) if term.text is not None else encoder.encode_images([term.image or ""])
        total += np.float32(term.weight) * one
    if float(np.linalg.norm(total)) < 1e-6:
        raise UsageError("the terms of the query cancel each other; change a weight.")
    return l2_normalise(total)


def _ranks(names: Sequence[str], scores: FloatArray, expected: Sequence[str]) -> dict[str, list[float]]:
    """Rank from 1 and score of each expected name; a tie goes to the earlier row, as in `top_k`."""
    found = {}
    wanted = set(expected)
    for row, name in enumerate(names):
        if name in wanted:
            before = int((scores > scores[row]).sum()) + int((scores[:row] == scores[row]).sum())
            found[name] = [before + 1, float(scores[row])]
    return found


_warm: "WeakKeyDictionary[CLIPInference, set[str]]" = WeakKeyDictionary()
_texts: "WeakKeyDictionary[CLIPInference, tuple[tuple[str, ...], FloatArray]]" = WeakKeyDictionary()


def _warm_up(model: CLIPInference, terms: Sequence[Term]) -> None:
    """The first pass of a tower allocates and compiles; its time says nothing about the next."""
    known = _warm.setdefault(model, set())
    kinds = {"image" if term.image is not None else "text" for term in terms}
    if not kinds <= known:
        query_of(model.encoder, terms)
        known |= kinds


def _texts_of(model: CLIPInference, texts: tuple[str, ...]) -> FloatArray:
    """Embeddings of texts, kept until others are asked for.  -> (N, D)"""
    kept = _texts.get(model)
    if kept is None or kept[0] != texts:
        kept = _texts[model] = (texts, model.encoder.encode_texts(texts))
    return kept[1]
