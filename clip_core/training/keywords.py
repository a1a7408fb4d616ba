"""Captions that are lists of keywords, in another order and with some left out: as true as before."""

import numpy as np

_FEWEST_PARTS = 3
_MOST_WORDS = 3  # of a part; clauses of a sentence are longer

PROBABILITY = 0.7  # with which a list is changed at all, so that whole ones are seen too
LEFT_OUT = 0.3  # share of the parts


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
