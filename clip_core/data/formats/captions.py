"""Captions as lists spell them: what counts as missing, and lists that a table holds in one cell."""

import ast
import json
import re
import unicodedata
from collections.abc import Sequence

from clip_core.text import printable

_MISSING = frozenset({"", "nan", "none", "null", "n/a", "#n/a", "<na>", "<null>", "\\n"})  # as exports spell it
_LONGEST_MISSING = max(map(len, _MISSING))
_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Mn", "Zl", "Zp", "Zs"})
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and symbols by category, and nothing to see
_AT_ENDS = "\u200b\u200c\u2060\ufeff"  # zero-width characters that copying leaves there
_KEYS = ("raw", "caption", "text")  # of a caption that is an object, as in Karpathy's files

_LITERAL = r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
_LITERALS = re.compile(_LITERAL)
# Python's list or tuple; NumPy prints its arrays without the commas.
_LIST = re.compile(rf"[\[(]\s*{_LITERAL}(?:[\s,]+{_LITERAL})*\s*,?\s*[\])]")
_MOST_LETTERS = 1_000_000  # of a list in a cell


def is_missing(text: str) -> bool:
    """Whether a caption, stripped of white space, is none: empty, invisible, or how programs write a missing value."""
    if text.isascii() and text.isprintable():
        return text == "NA" or text.casefold() in _MISSING
    return all(letter in _BLANK or unicodedata.category(letter) in _INVISIBLE for letter in text)


def clean_caption(caption: object) -> tuple[str, str | None]:
    """A caption without white space around it, and what is wrong with it or None."""
    if isinstance(caption, dict):
        caption = next((caption[key] for key in _KEYS if isinstance(caption.get(key), str)), caption)
    if not isinstance(caption, str):
        if caption is None or caption != caption:  # NaN
            return "", "the caption is missing"
        return "", f"the caption {_shown(caption)} is not text"
    text = caption.strip()
    if len(text) > _LONGEST_MISSING and text.isascii() and text.isprintable():  # nearly all: a million rows are quick
        return text, None
    if not text.isascii():
        # Half surrogates can be spelt in JSON but not written as UTF-8.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip(_AT_ENDS).strip()
    if not is_missing(text):
        return text, None
    if not text:
        return "", "the caption is empty"
    return "", f"the caption is missing ({text!r})" if text.isprintable() else "the caption has no visible character"


def sound_captions(captions: Sequence[object]) -> list[str] | None:
    """Captions without white space around them, if nothing else has to be said of any; else None."""
    try:
        texts = list(map(str.strip, captions))  # type: ignore[arg-type]
    except TypeError:  # not all are texts
        return None
    together = "".join(texts)
    if together.isascii() and together.isprintable() and min(map(len, texts)) > _LONGEST_MISSING:
        listed = ("]" in together or ")" in together) and any(text[0] in "[(" for text in texts)
        return None if listed else texts
    cleaned = [clean_caption(text) for text in texts]
    if any(mistake is not None or text[0] in "[(" for text, mistake in cleaned):
        return None
    return [text for text, _ in cleaned]


def list_in_cell(text: str) -> list[str] | None:
    """The captions of a cell that holds a list of them, in the syntax of JSON, Python or NumPy; else None."""
    cell = text.strip()
    if len(cell) < 2 or cell[0] not in "[(" or cell[-1] not in "])" or len(cell) > _MOST_LETTERS:
        return None
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        if not _LIST.fullmatch(cell):
            return None
        try:
            values = [ast.literal_eval(literal) for literal in _LITERALS.findall(cell)]
        except (ValueError, SyntaxError):
            return None
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return values
    return None


def _shown(value: object) -> str:
    return printable(repr(value), limit=80)
