"""Caption augmentation: keyword lists are shuffled and thinned, words dropped, BPE merges undone.

Shapes: U captions, T tokens of the longest.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_core.data.dataset import IntArray
from clip_core.data.tokenizer import Tokenizer
from clip_core.text import keywords

Keys = NDArray[np.uint64]

PROBABILITY = 0.7  # of changing a list at all
PART_DROPOUT = 0.3  # share of the parts of a list that is dropped


@dataclass(frozen=True)
class CaptionAugmentation:
    """Changes a caption's text at random; at least one word always stays.

    Args:
        lists: shuffle lists of keywords and drop some of them.
        word_dropout: share of the words that is dropped from any other caption.
    """

    lists: bool = False
    word_dropout: float = 0.0

    def changes(self, caption: str) -> bool:
        """Whether this caption can come out changed."""
        return self.word_dropout > 0 or (self.lists and keywords(caption) is not None)

    def __call__(self, caption: str, random: np.random.Generator) -> str:
        parts = keywords(caption) if self.lists else None
        if parts is not None:
            return thinned(parts, random)
        words = caption.split()
        kept = [word for word in words if random.random() >= self.word_dropout]
        return " ".join(kept or [words[random.integers(len(words))]])


class BPEDropout:
    """Splits tokens at random into the two they were merged from, and those again.

    Words are then seen as subwords too, and unseen words are made of subwords that were seen. Provilkov et al. 2020,
    "BPE-dropout", skip merges while they tokenize; here the token ids are split, which needs no text.

    Args:
        share: probability that a token is split.
    Raises:
        TokenizerError: if the tokenizer is no byte-pair encoding.
    """

    def __init__(self, tokenizer: Tokenizer, share: float) -> None:
        self.share = share
        self._pieces = tokenizer.merged_from()
        self._end, self._pad, self._longest = tokenizer.end_token, tokenizer.pad_id, tokenizer.context_length

    def __call__(self, rows: IntArray, keys: Keys) -> IntArray:
        """Split tokens of each row; one that would exceed the context length stays as it is.

        Args:
            rows: (U, T).
            keys: from `draw_keys`, (U,).
        Returns:
            (U, T or more).
        """
        counts = 1 + (rows == self._end).argmax(axis=1)
        tokens, owners = rows[np.arange(rows.shape[1]) < counts[:, None]], np.repeat(np.arange(len(rows)), counts)
        new = np.ones(len(tokens), dtype=bool)  # not yet drawn for
        again = np.uint64(0)
        while new.any():
            again += np.uint64(1)
            place = np.arange(len(tokens)) - np.searchsorted(owners, owners)  # within its row
            drawn = _mixed(keys[owners] ^ _mixed(place.astype(np.uint64) ^ (again << np.uint64(32))))
            split = new & (self._pieces[tokens, 0] >= 0) & (_uniform(drawn) < self.share)
            repeats = 1 + split
            first = (repeats.cumsum() - repeats)[split]
            pieces = self._pieces[tokens[split]]
            tokens, owners, new = (np.repeat(values, repeats) for values in (tokens, owners, split))
            tokens[first], tokens[first + 1] = pieces.T
        lengths = np.bincount(owners, minlength=len(rows))
        fits = lengths <= self._longest
        width = max(rows.shape[1], lengths[fits].max(initial=0))
        out = np.full((len(rows), width), self._pad, dtype=rows.dtype)
        out[:, : rows.shape[1]][~fits] = rows[~fits]
        out[(np.arange(width) < lengths[:, None]) & fits[:, None]] = tokens[fits[owners]]
        return out


def draw_keys(seed: int, step: int, captions: IntArray) -> Keys:
    """A random number for each caption of a step, the same whichever process draws it.  (U,) -> (U,)"""
    return _mixed(_mixed(np.uint64(seed) ^ _mixed(np.uint64(step))) ^ captions.astype(np.uint64))


def _mixed(values: Keys | np.uint64) -> Keys:
    """SplitMix64's finaliser: numbers that look random, from any that differ (Steele et al. 2014)."""
    mixed = np.asarray(values, dtype=np.uint64).copy()
    with np.errstate(over="ignore"):
        mixed += np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _uniform(keys: Keys) -> NDArray[np.float64]:
    """In [0, 1)."""
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def thinned(parts: list[str], random: np.random.Generator) -> str:
    """A caption of some of these keywords, at least one, in random order."""
    if random.random() >= PROBABILITY:
        return ", ".join(parts)
    shuffled = [parts[i] for i in random.permutation(len(parts))]
    kept = [part for part in shuffled if random.random() >= PART_DROPOUT]
    return ", ".join(kept or shuffled[:1])
