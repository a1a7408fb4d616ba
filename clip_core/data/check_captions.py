"""What `clip-data check` measures of captions: lengths, scripts, repetition, and the false negatives of a batch.

Shapes: P pairs.
"""

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip_core.errors import TokenizerError
from clip_core.text import normalise_caption

if TYPE_CHECKING:
    from clip_core.data.tokenizer import Tokenizer

IntArray = NDArray[np.int64]

NO_LETTERS = "no letters"
MOST_TOKENIZED = 100_000  # captions that tokenizers are tried on; of more, as many spread over the list


class PairTable(NamedTuple):
    """One value for each pair, all of shape (P,).

    Attributes:
        image: a hash of the image's path, int64.
        caption: a hash of the normalised caption, int64.
        characters, words: of the caption, int32.
        script: row of `scripts`, int16.
        problem: whether the pair is unusable before any decoding, bool.
        scripts: their names.
    """

    image: IntArray
    caption: IntArray
    characters: NDArray[np.int32]
    words: NDArray[np.int32]
    script: NDArray[np.int16]
    problem: NDArray[np.bool_]
    scripts: list[str]


@dataclass(frozen=True)
class TokenizerFit:
    """How well a tokenizer holds the captions."""

    kind: str  # char and bpe, as training would make them, or clip
    vocab_size: int
    context_length: int
    truncated: int  # of the captions that were tried


def table_of(pairs: Iterable[tuple[str, str, bool]], count: int) -> PairTable:
    """Measure `count` pairs, each the path of an image, a caption, and whether it has a problem."""
    table = PairTable(
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
        np.zeros(count, np.int16),
        np.zeros(count, np.bool_),
        [],
    )
    scripts: dict[str, int] = {}
    for row, (path, caption, problem) in enumerate(pairs):
        table.image[row], table.caption[row] = hash(path), hash(normalise_caption(caption))
        table.characters[row], table.words[row] = len(caption), len(caption.split())
        table.script[row] = scripts.setdefault(script_of(caption), len(scripts))
        table.problem[row] = problem
    table.scripts.extend(scripts)
    return table


def script_of(caption: str) -> str:
    """The script that most of the caption's letters have, as Unicode names it: Latin, Cyrillic, Cjk, Hiragana, ..."""
    if caption.isascii():
        return "Latin" if any(map(str.isalpha, caption)) else NO_LETTERS
    counts: dict[str, int] = {}
    for letter in caption:
        if letter.isalpha():
            script = _script(letter)
            counts[script] = counts.get(script, 0) + 1
    return max(counts, key=lambda name: counts[name]) if counts else NO_LETTERS


@lru_cache(maxsize=8192)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "other").split()[0].capitalize()


def false_negatives(images: IntArray, captions: IntArray, batch_size: int) -> dict[str, float]:
    """What a random batch holds of pairs that match another one: the same image or the same caption.

    Args:
        images: row or hash of each pair's image, (P,).
        captions: of its normalised caption, (P,).
        batch_size: pairs drawn at random without replacement; at most P.
    Returns:
        `batch_size`; `matching_pairs`: the expected number of couples in a batch that match; `affected`: the expected
        fraction of the batch's pairs that match at least one other.
    """
    count = len(images)
    batch = min(batch_size, count)
    if batch < 2:
        return {"batch_size": batch, "matching_pairs": 0.0, "affected": 0.0}
    _, image_rows = np.unique(images, return_inverse=True)
    _, caption_rows = np.unique(captions, return_inverse=True)
    both = image_rows.astype(np.int64) * count + caption_rows
    matches = _others(image_rows) + _others(caption_rows) - _others(np.unique(both, return_inverse=True)[1])
    couples = float(matches.sum()) / 2 * (batch * (batch - 1)) / (count * (count - 1))
    sizes, pairs = np.unique(matches, return_counts=True)
    alone = [_none_drawn(count - 1, int(size), batch - 1) for size in sizes]
    affected = 1 - float(np.dot(alone, pairs)) / count
    return {"batch_size": batch, "matching_pairs": couples, "affected": max(affected, 0.0)}


def _others(rows: IntArray) -> IntArray:
    """How many other pairs have the same row, (P,)."""
    return np.asarray(np.bincount(rows)[rows] - 1, dtype=np.int64)


def _none_drawn(count: int, marked: int, drawn: int) -> float:
    """Probability that `drawn` of `count` items, `marked` of them marked, include no marked one (hypergeometric)."""
    if drawn > count - marked:
        return 0.0
    log = math.lgamma
    return math.exp(log(count - marked + 1) - log(count - marked - drawn + 1) - log(count + 1) + log(count - drawn + 1))


def tokenizer_fits(
    captions: list[str], context_length: int, vocab_size: int | None
) -> tuple[list[TokenizerFit], str | None]:
    """The tokenizers that training would make, and CLIP's own; a sentence where that one is not here."""
    from clip_core.data.clip_bpe import find_clip_tokenizer
    from clip_core.data.tokenizer import train_bpe, train_characters

    def fit(kind: str, tokenizer: "Tokenizer") -> TokenizerFit:
        return TokenizerFit(kind, tokenizer.vocab_size, context_length, tokenizer.count_truncated(captions))

    fits = [
        fit("char", train_characters(captions, context_length)),
        fit("bpe", train_bpe(captions, vocab_size, context_length)),
    ]
    try:
        return [*fits, fit("clip", find_clip_tokenizer(None, context_length))], None
    except TokenizerError:
        return fits, "CLIP's BPE is not tried: its vocabulary is not here (pip install open_clip_torch brings it)"


def lengths(values: NDArray[np.int32]) -> dict[str, int]:
    """Median, 95th percentile and maximum."""
    if not len(values):
        return {"median": 0, "p95": 0, "longest": 0}
    return {
        "median": int(np.median(values)),
        "p95": int(np.percentile(values, 95)),
        "longest": int(values.max()),
    }


def script_counts(table: PairTable, usable: NDArray[np.bool_]) -> dict[str, int]:
    """Captions of each script, the most frequent first."""
    counts = np.bincount(table.script[usable], minlength=len(table.scripts))
    named = {name: int(count) for name, count in zip(table.scripts, counts, strict=True) if count}
    return dict(sorted(named.items(), key=lambda item: -item[1]))
