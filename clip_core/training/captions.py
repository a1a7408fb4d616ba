"""Captions as a step reads them: with something left out, so that they stay true and are never the same.

Shapes: U captions, T tokens of the longest.
"""

from dataclasses import dataclass

import numpy as np

from clip_core.data.dataset import IntArray
from clip_core.data.tokenizer import Tokenizer

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


class MergeDropout:
    """Now and then a token is read as the two it was merged from, and so may they be.

    So a word is met in pieces too, and a new word is made of pieces that were met. Source: BPE-dropout, Provilkov et
    al. 2020; they leave out merges on the way up, which needs the text, where here numbers fall apart on the way down.

    Raises:
        TokenizerError: if the tokenizer is no byte-pair encoding.
    """

    def __init__(self, tokenizer: Tokenizer, share: float) -> None:
        self.share = share
        self._pieces = tokenizer.merged_from()
        self._end, self._pad, self._most = tokenizer.end_token, tokenizer.pad_id, tokenizer.context_length

    def __call__(self, rows: IntArray, random: np.random.Generator) -> IntArray:
        """Token rows, (U, T), each up to its end token -> (U, T or more); one that would grow too long stays whole."""
        counts = 1 + (rows == self._end).argmax(axis=1)
        tokens, owners = rows[np.arange(rows.shape[1]) < counts[:, None]], np.repeat(np.arange(len(rows)), counts)
        fresh = np.ones(len(tokens), dtype=bool)
        while fresh.any():
            split = fresh & (self._pieces[tokens, 0] >= 0) & (random.random(len(tokens)) < self.share)
            becomes = 1 + split
            first = (becomes.cumsum() - becomes)[split]
            pieces = self._pieces[tokens[split]]
            tokens, owners, fresh = (np.repeat(values, becomes) for values in (tokens, owners, split))
            tokens[first], tokens[first + 1] = pieces.T
        lengths = np.bincount(owners, minlength=len(rows))
        fits = lengths <= self._most
        width = max(rows.shape[1], lengths[fits].max(initial=0))
        answer = np.full((len(rows), width), self._pad, dtype=rows.dtype)
        answer[:, : rows.shape[1]][~fits] = rows[~fits]
        answer[(np.arange(width) < lengths[:, None]) & fits[:, None]] = tokens[fits[owners]]
        return answer


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
