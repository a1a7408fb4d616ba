"""CLIP's own text cleaning: mojibake fixed, lower case, split into words, each word as bytes.

Published weights were trained on captions read this way, so it is part of a model's identity. The text is fixed
by ftfy and split by regex, as OpenAI's and open_clip's tokenizers do: the letters of Python's own `re`
are those of an older Unicode, and an unknown letter gives other token ids.
"""

import html
from functools import cache, lru_cache
from typing import Any

import tokenizers

_SUFFIX = "</w>"  # end of a word's last token
_WORDS = (
    r"<start_of_text>|<end_of_text>"
    r"|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class ClipWords:
    """Captions as token numbers of CLIP's BPE, without start, end and padding.

    Args:
        model: the BPE, as accepted by `is_clip_bpe`.
        start, end: the numbers for captions that spell `<start_of_text>` and `<end_of_text>` as words of their own,
            which open_clip takes for the tokens themselves.
    """

    def __init__(self, model: Any, start: int, end: int) -> None:
        self._model = model
        self._special = {"<start_of_text>": (start,), "<end_of_text>": (end,)}
        self._numbers = lru_cache(maxsize=2**16)(self._look_up)

    def __call__(self, text: str) -> list[int]:
        return [number for word in split(clean(text)) for number in self._numbers(word)]

    def _look_up(self, word: str) -> tuple[int, ...]:
        if word in self._special:
            return self._special[word]
        symbols = byte_symbols()
        spelt = "".join(symbols[byte] for byte in word.encode("utf-8"))
        return tuple(token.id for token in self._model.tokenize(spelt))


def is_clip_bpe(inner: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer's model is a BPE on bytes that marks the ends of words, which only CLIP's is."""
    if getattr(inner.model, "end_of_word_suffix", None) != _SUFFIX:
        return False
    return all(inner.token_to_id(name) is not None for byte in byte_symbols() for name in (byte, byte + _SUFFIX))


def clean(text: str) -> str:
    """Fix mojibake, resolve HTML entities twice, collapse white space, lower case.

    Source: `whitespace_clean` after `basic_clean` of Radford et al. 2021's tokenizer.
    """
    return " ".join(fix(text).split()).lower()


def fix(text: str) -> str:
    """Fix mojibake and resolve HTML entities twice.

    Source: `basic_clean` of Radford et al. 2021's tokenizer, without its `strip`.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return text  # whole as it is
    import ftfy  # here, so that the start of a command does not wait for its tables

    return html.unescape(html.unescape(ftfy.fix_text(text)))


def split(text: str) -> list[str]:
    """The words of a cleaned caption: runs of letters, single digits, runs of signs, English contractions."""
    return list(_pattern().findall(text))


@cache
def byte_symbols() -> tuple[str, ...]:
    """A printable character for each of the 256 bytes: itself, or one from U+0100 on (Radford et al. 2019)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


@cache
def _pattern() -> Any:
    import regex

    return regex.compile(_WORDS, regex.IGNORECASE)
