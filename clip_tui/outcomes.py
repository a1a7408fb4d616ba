"""The classification of a set of images, counted: per class, as a confusion matrix, and the wrong ones first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from clip_core.text import normalise_caption
from clip_tui.gallery import Gallery

Order = Literal["recall", "precision", "count"]
ORDERS: tuple[Order, ...] = ("recall", "precision", "count")


@dataclass(frozen=True)
class Outcome:
    """One image: its class and the predicted one, as indices of the classes; `true` is None where it is unknown."""

    image: str
    true: int | None
    predicted: int
    probability: float

    @property
    def wrong(self) -> bool:
        return self.true is not None and self.true != self.predicted


@dataclass(frozen=True)
class ClassRow:
    """A class: how many images are of it, how many were predicted as it, and how many of those are right."""

    index: int
    name: str
    count: int
    predicted: int
    right: int

    @property
    def recall(self) -> float | None:
        return self.right / self.count if self.count else None

    @property
    def precision(self) -> float | None:
        return self.right / self.predicted if self.predicted else None


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of a set, wrong ones first, the most certain of them first."""

    classes: Sequence[str] = ()
    every: Sequence[Outcome] = ()
    matrix: Mapping[tuple[int, int], int] = field(default_factory=dict)  # (true, predicted) -> images

    @cached_property
    def names(self) -> list[str]:
        """The classes where there is little room."""
        return without_shared_words(self.classes)

    @property
    def labelled(self) -> int:
        return sum(outcome.true is not None for outcome in self.every)

    @property
    def right(self) -> int:
        return sum(outcome.true == outcome.predicted for outcome in self.every if outcome.true is not None)

    def rows(self, order: Order) -> list[ClassRow]:
        """A row a class: the lowest recall or precision first, or the largest count."""
        rows = []
        for index, name in enumerate(self.classes):
            count = sum(n for (true, _), n in self.matrix.items() if true == index)
            predicted = sum(n for (_, guess), n in self.matrix.items() if guess == index)
            rows.append(ClassRow(index, name, count, predicted, self.matrix.get((index, index), 0)))
        if order == "count":
            return sorted(rows, key=lambda row: -row.count)
        return sorted(rows, key=lambda row: _last_if_none(getattr(row, order)))

    def of_cell(self, true: int, predicted: int) -> list[Outcome]:
        return [each for each in self.every if (each.true, each.predicted) == (true, predicted)]

    def of_class(self, index: int) -> list[Outcome]:
        """The images of a class, and those that were taken for it; wrong ones first."""
        return [each for each in self.every if index in (each.true, each.predicted)]


def without_shared_words(names: Sequence[str]) -> list[str]:
    """Names without the words that all begin or end with, as `a photo of`."""
    words = [name.split() for name in names]
    if len(words) < 2:
        return list(names)
    least = min(map(len, words)) - 1  # of each, a word is left
    first = _common(words, least)
    last = _common([each[::-1] for each in words], least - first)
    return [" ".join(each[first : len(each) - last]) for each in words]


def _common(words: Sequence[Sequence[str]], most: int) -> int:
    """How many words all begin with, at most `most`."""
    return next((n for n in range(most) if len({each[n] for each in words}) > 1), max(0, most))


def _last_if_none(value: float | None) -> float:
    return 2.0 if value is None else value


def labels_of(gallery: Gallery, classes: Sequence[str], templates: Sequence[str]) -> dict[str, int]:
    """The class of each image whose captions name one: the class itself, or a template filled with it."""
    known: dict[str, int] = {}
    for index, name in enumerate(classes):
        for text in (name, *(template.replace("{}", name) for template in templates)):
            known.setdefault(normalise_caption(text), index)
    labels = {}
    for image, captions in gallery.captions_of.items():
        found = next((known[key] for c in captions if (key := normalise_caption(c)) in known), None)
        if found is not None:
            labels[image] = found
    return labels


def outcomes_of(result: Mapping[str, Any], classes: Sequence[str], labels: Mapping[str, int]) -> Outcomes:
    """A server's answer to `classification_set`, with the true classes."""
    each = zip(result.get("images", []), result.get("predicted", []), result.get("probabilities", []), strict=False)
    every = [Outcome(image, labels.get(image), predicted, share) for image, predicted, share in each]
    every.sort(key=lambda outcome: (not outcome.wrong, -outcome.probability if outcome.wrong else outcome.probability))
    matrix: dict[tuple[int, int], int] = {}
    for outcome in every:
        if outcome.true is not None:
            cell = (outcome.true, outcome.predicted)
            matrix[cell] = matrix.get(cell, 0) + 1
    return Outcomes(classes, every, matrix)
