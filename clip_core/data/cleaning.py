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
    """Put the cleaning before the tokenizer's own normalisers; a cleaning that is stated already stays."""
    if stated_cleaning(inner) is None:
        own = [] if inner.normalizer is None else [inner.normalizer]
        inner.normalizer = normalizers.Sequence([*_normalisers(how), *own])


def stated_cleaning(inner: tokenizers.Tokenizer) -> Cleaning | None:
    """The cleaning that a tokenizer begins with; None where it is none of these."""
    parts = _flat(json.loads(inner.to_str())["normalizer"])
    for how, wanted in _FORMS:
        if parts[: len(wanted)] == wanted:
            return how
    return None


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


def _flat(stored: Any) -> list[Any]:
    """A stored normaliser as the list of its steps."""
    if stored is None:
        return []
    if stored["type"] != "Sequence":
        return [stored]
    return [step for part in stored["normalizers"] for step in _flat(part)]


def _form(how: Cleaning) -> list[Any]:
    empty = tokenizers.Tokenizer(tokenizers.models.BPE())
    empty.normalizer = normalizers.Sequence(_normalisers(how))
    return _flat(json.loads(empty.to_str())["normalizer"])


_FORMS = sorted(((how, _form(how)) for how in Cleaning), key=lambda each: -len(each[1]))  # the longest first
