"""Hard negatives: captions of the same words or of nearly the same, which are wrong.

A model that reads a caption as a bag of words cannot tell "a red circle on a blue square" from "a blue circle on a red
square". Three kinds, made from the set's own captions:

    order    all words shuffled
    swap     two words of the same class exchanged: two colours, two numbers, or two content words
    replace  one word replaced by another of its class that other captions have

Source: Yuksekgonul et al. 2023, "When and why vision-language models behave like bags-of-words" (arXiv 2210.01936), for
order and swap, and for training with them (NegCLIP); Hsieh et al. 2023, "SugarCrepe" (arXiv 2306.14610), for replace.
Those find nouns and adjectives by a tagger. Here a class is one of the English word lists below; every other word of
three letters and more, in any script with spaces, is a content word.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from clip_core.text import keywords, normalise_caption

Kind = Literal["order", "swap", "replace"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Words = Mapping[str, Sequence[str]]  # a vocabulary, by class

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_TRIES = 8
_ALIKE = frozenset({"and", "or", ",", "&", "/"})  # between two words whose order means nothing
_CONTENT = "content"
_FEWEST_LETTERS = 3
_MOST_LETTERS = 40  # of a word of the vocabulary: what is longer is an address or a code
_MOST_WORDS = 20_000  # of a class in the vocabulary, the most frequent ones
_FEWEST_TO_SHUFFLE = 3

_CLASSES: dict[str, str] = {
    "colour": "red orange yellow green blue purple violet pink brown black white grey gray golden silver",
    "number": "one two three four five six seven eight nine ten eleven twelve",
    "size": "small big large tiny huge little tall short long wide narrow",
    "age": "young old new",
    "side": "left right",
    "place": "above below under over behind beside inside outside",
    "material": "wooden metal plastic glass paper cardboard leather stone brick",
    "pattern": "striped dotted checkered plain",
}  # fmt: skip
_CLASS_OF = {word: name for name, words in _CLASSES.items() for word in words.split()}
_FUNCTION_WORDS = (
    "the and with for from into onto that this these those there its his her their our your are was were has have had "
    "been being can will would not but out off per via than then who which what when where while some any all each "
    "photo picture image"
)
_FUNCTION = frozenset(_FUNCTION_WORDS.split())


class Negative(NamedTuple):
    """A wrong caption, and how it was made."""

    kind: Kind
    caption: str


def words_of(captions: Iterable[str]) -> dict[str, list[str]]:
    """The vocabulary of captions, whose words replace others: by class, in alphabetical order, of bounded size."""
    found: dict[str, Counter[str]] = {}
    for caption in captions:
        for word in _WORD.findall(caption):
            if len(word) <= _MOST_LETTERS and (name := _class_of(word)) is not None:
                found.setdefault(name, Counter())[word.lower()] += 1
    return {name: sorted(word for word, _ in counter.most_common(_MOST_WORDS)) for name, counter in found.items()}


class HardNegatives:
    """Makes wrong captions with a vocabulary, from `words_of`."""

    def __init__(self, words: Words) -> None:
        self._vocabulary = words
        self._makers: dict[Kind, Callable[[str, np.random.Generator], str | None]] = {
            "order": _shuffled, "swap": _swapped, "replace": self._replaced,
        }  # fmt: skip

    def draw(
        self, caption: str, own: Sequence[str], random: np.random.Generator, kinds: Sequence[Kind] = KINDS
    ) -> Negative | None:
        """A negative of one of the kinds, at random; None where none can be made, as for a single unknown word.

        Args:
            own: captions of the same image, none of which a negative may be, however it is spelt.
        """
        for number in random.permutation(len(kinds)):
            kind = kinds[number]
            if (made := self.make(kind, caption, own, random)) is not None:
                return Negative(kind, made)
        return None

    def make(self, kind: Kind, caption: str, own: Sequence[str], random: np.random.Generator) -> str | None:
        """A negative of this kind, or None; the order of keywords means nothing, so that theirs are `replace` only."""
        if kind != "replace" and keywords(caption) is not None:
            return None
        right = {normalise_caption(each) for each in (caption, *own)}
        for _ in range(_TRIES):
            made = self._makers[kind](caption, random)
            if made is None:
                return None
            if normalise_caption(made) not in right:
                return made
        return None

    def _replaced(self, caption: str, random: np.random.Generator) -> str | None:
        """A word exchanged for another of its class, by preference not a content word."""
        words = list(_WORD.finditer(caption))
        present = {word.group().lower() for word in words}
        classes = dict.fromkeys(_class_of(word.group()) or "" for word in words)  # in their order: each draws
        others = {name: self._other(name, present, random) for name in classes}
        places = [word for word in words if others[_class_of(word.group()) or ""] is not None]
        places = [word for word in places if _class_of(word.group()) != _CONTENT] or places
        if not places:
            return None
        place = places[random.integers(len(places))]
        other = others[_class_of(place.group()) or ""] or ""
        return caption[: place.start()] + _as(place.group(), other) + caption[place.end() :]

    def _other(self, name: str, present: set[str], random: np.random.Generator) -> str | None:
        """A word of the class that is not in the caption; a large vocabulary is not looked through."""
        words = self._vocabulary.get(name, ())
        if len(words) < 2 * len(present):
            words = [word for word in words if word not in present]
        for _ in range(_TRIES if words else 0):
            if (word := words[int(random.integers(len(words)))]) not in present:
                return word
        return None


def _class_of(word: str) -> str | None:
    """The class of a word; None for a function word and one of fewer than three letters."""
    lower = word.lower()
    if (known := _CLASS_OF.get(lower)) is not None:
        return known
    return _CONTENT if len(lower) >= _FEWEST_LETTERS and lower.isalpha() and lower not in _FUNCTION else None


def _shuffled(caption: str, random: np.random.Generator) -> str | None:
    words = caption.split()
    if len({word.lower() for word in words}) < _FEWEST_TO_SHUFFLE:
        return None
    return " ".join(words[place] for place in random.permutation(len(words)))


def _swapped(caption: str, random: np.random.Generator) -> str | None:
    """Two words of the same class exchanged, by preference not two content words."""
    by_class: dict[str, list[re.Match[str]]] = {}
    for word in _WORD.finditer(caption):
        if (name := _class_of(word.group())) is not None:
            by_class.setdefault(name, []).append(word)
    several = {name: words for name, words in by_class.items() if len({word.group().lower() for word in words}) > 1}
    names = [name for name in several if name != _CONTENT] or list(several)
    if not names:
        return None
    words = several[names[random.integers(len(names))]]
    first, second = sorted(random.choice(len(words), 2, replace=False).tolist())
    a, b = words[first], words[second]
    between = caption[a.end() : b.start()]
    if a.group().lower() == b.group().lower() or between.strip().lower() in _ALIKE:
        return caption  # which is tried again
    return f"{caption[: a.start()]}{_as(a.group(), b.group())}{between}{_as(b.group(), a.group())}{caption[b.end() :]}"


def _as(word: str, other: str) -> str:
    """`other` with a capital where `word` has one."""
    return other[:1].upper() + other[1:] if word[:1].isupper() else other.lower()
