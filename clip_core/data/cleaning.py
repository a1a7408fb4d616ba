"""Text cleaning before a sentence tokenizer (SentencePiece and its like); CLIP's own BPE has its own, in clip_text.py.

Published weights were trained on captions cleaned in one way, so it is part of a model's identity. It is stored as the
first normalisers of tokenizer.json, where `stated_cleaning` finds it again; a plain `tokenizers.Tokenizer` gives the
same ids for nearly all text. What no normaliser can do (mojibake, HTML entities, the Greek sigma that ends a word) is
done in Python before.
"""

import json
import string
from enum import StrEnum
from typing import Any

import tokenizers
from tokenizers import Regex, normalizers

from clip_core.data.clip_text import fix

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PUNCTUATION = r"[!-/:-@\[-`{-~]"
_SPACES = r"[\s\x1c-\x1f]+"  # what str.split() takes for white space


class Cleaning(StrEnum):
    """How captions are cleaned: open_clip's three names, and those of transformers' SigLIP tokenizers.

    WHITESPACE, LOWER, CANONICALIZE: mojibake and HTML entities are resolved, white space is collapsed; then lower case;
    then no punctuation either, with "_" as a space.
    SIGLIP: lower case, no punctuation, white space collapsed. SIGLIP2: lower case.
    """

    WHITESPACE = "whitespace"
    LOWER = "lower"
    CANONICALIZE = "canonicalize"
    SIGLIP = "siglip"
    SIGLIP2 = "siglip2"


def clean(text: str, how: Cleaning) -> str:
    """A caption as the tokenizer reads it; SIGLIP2's lower case is the tokenizer's own, letter by letter.

    Source: open_clip's `get_clean_fn`; `canonicalize_text` of big_vision (Zhai et al. 2023), as transformers has it.
    """
    if how is Cleaning.SIGLIP2:
        return text
    text = text.lower().translate(_NO_PUNCTUATION) if how is Cleaning.SIGLIP else fix(text)
    if how is Cleaning.CANONICALIZE:
        text = text.replace("_", " ").translate(_NO_PUNCTUATION)
    text = " ".join(text.split())
    return text.lower() if how in (Cleaning.LOWER, Cleaning.CANONICALIZE) else text


def set_cleaning(inner: tokenizers.Tokenizer, how: Cleaning) -> None:
    """Put the cleaning before the tokenizer's own normalisers; one that is stated stays, but for lower case alone."""
    if stated_cleaning(inner) in (None, Cleaning.SIGLIP2 if how is not Cleaning.SIGLIP2 else None):
        own = [] if inner.normalizer is None else [inner.normalizer]
        inner.normalizer = normalizers.Sequence([*_normalisers(how), *own])


def stated_cleaning(inner: tokenizers.Tokenizer) -> Cleaning | None:
    """The cleaning that a tokenizer begins with; None where it is none of these."""
    parts = _steps(inner.normalizer)
    return next((how for how, form in _FORMS if parts[: len(form)] == form), None)


def take_cleaning(inner: tokenizers.Tokenizer) -> Cleaning | None:
    """Remove the normalisers of the stated cleaning, which is returned: `clean` takes their place.

    They are almost the same, but know letters of a later Unicode than Python. SIGLIP2's lower case stays.
    """
    how = stated_cleaning(inner)
    if how is not None and how is not Cleaning.SIGLIP2:
        own = _steps(inner.normalizer)[len(dict(_FORMS)[how]) :]
        left = normalizers.Sequence([])
        left.__setstate__(json.dumps({"type": "Sequence", "normalizers": own}).encode())
        inner.normalizer = left
    return how


def _normalisers(how: Cleaning) -> list[Any]:
    spaces = [normalizers.Replace(Regex(_SPACES), " "), normalizers.Strip()]
    punctuation = normalizers.Replace(Regex(_PUNCTUATION), "")
    lower = normalizers.Lowercase()
    steps: dict[Cleaning, list[Any]] = {
        Cleaning.WHITESPACE: spaces,
        Cleaning.LOWER: [*spaces, lower],
        Cleaning.CANONICALIZE: [normalizers.Replace("_", " "), punctuation, lower, *spaces],
        Cleaning.SIGLIP: [lower, punctuation, *spaces],
        Cleaning.SIGLIP2: [lower],
    }
    return steps[how]


def _steps(normaliser: Any) -> list[Any]:
    """The steps of a normaliser as tokenizer.json has them."""
    if normaliser is None:
        return []
    stored = json.loads(normaliser.__getstate__())
    return list(stored["normalizers"]) if stored["type"] == "Sequence" else [stored]


_FORMS = sorted(  # the longest first
    ((how, _steps(normalizers.Sequence(_normalisers(how)))) for how in Cleaning), key=lambda each: -len(each[1])
)
