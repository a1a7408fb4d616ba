"""Captions as a step reads them: with something left out, so that they stay true and are never the same."""

from dataclasses import dataclass

import numpy as np

_FEWEST_PARTS = 3
_MOST_WORDS = 3  # of a part; clauses of a sentence are longer

PROBABILITY = 0.7  # with which a list is changed at all, so that whole ones are seen too
LEFT_OUT = 0.3  # share of the parts


@dataclass(frozen=True)
class CaptionChange:
    """What a step may do to a caption.

    `lists`: shuffle a list of keywords and leave some out; `word_dropout`: the share of the words of any other caption
    that is left out. Something always stays.
    """

    lists: bool = False
    word_dropout: float = 0.0

    def changes(self, caption: str) -> bool:
        """Whether a caption is ever changed."""
        return self.word_dropout > 0 or (self.lists and keywords(caption) is not None)

    def __call__(self, caption: str, random: np.random.Generator) -> str:
        parts = keywords(caption) if self.lists else None
        if parts is not None:
            return thinned(parts, random)
        words = caption.split()
        kept = [word for word in words if random.random() >= self.word_dropout]
        return " ".join(kept or [words[random.integers(len(words))]])


def keywords(caption: str) -> list[str] | None:
    """The parts of a caption such as "late, early, time"; None for one that is no list."""
    parts = [part.strip() for part in caption.split(",")]
    listed = len(parts) >= _FEWEST_PARTS and all(0 < len(part.split()) <= _MOST_WORDS for part in parts)
    return parts if listed else None


def thinned(parts: list[str], random: np.random.Generator) -> str:
    """A caption of some of these keywords, at least one, in any order."""
    if random.random() >= PROBABILITY:
        return ", ".join(parts)
    shuffled = [parts[i] for i in random.permutation(len(parts))]
    kept = [part for part in shuffled if random.random() >= LEFT_OUT]
    return ", ".join(kept or shuffled[:1])
