"""CLIP's own text cleaning: mojibake fixed, lower case, split into words, each word as bytes.

Published weights were trained on captions read this way, so it is part of a model's identity. The text is fixed
by ftfy and split by regex, as OpenAI's and open_clip's tokenizers do: the letters of Python's own `re`
are those of an older Unicode, and an unknown letter gives other token ids.
"""

import html
from collections.abc import Callable, Iterator, Mapping
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
        added: words that were added to the vocabulary (textual inversion), with their numbers; the longest of those
            that begin at a place counts. Where one is `normalized`, it is looked for in the cleaned caption.
    """

    def __init__(self, model: Any, start: int, end: int, added: Mapping[int, tokenizers.AddedToken] = {}) -> None:
        self._model = model
        self._special = {"<start_of_text>": (start,), "<end_of_text>": (end,)}
        self._numbers = lru_cache(maxsize=2**16)(self._look_up)
        self._as_written = _Added({n: each for n, each in added.items() if not each.normalized}, str)
        self._cleaned = _Added({n: each for n, each in added.items() if each.normalized}, clean)

    def __call__(self, text: str) -> list[int]:
        numbers: list[int] = []
        for piece in self._as_written.split(text):
            for part in [piece] if isinstance(piece, int) else self._cleaned.split(clean(piece)):
                if isinstance(part, int):
                    numbers.append(part)
                else:
                    numbers += (number for word in split(part) for number in self._numbers(word))
        return numbers

    def _look_up(self, word: str) -> tuple[int, ...]:
        if word in self._special:
            return self._special[word]
        symbols = byte_symbols()
        spelt = "".join(symbols[byte] for byte in word.encode("utf-8"))
        return tuple(token.id for token in self._model.tokenize(spelt))


class _Added:
    """Added words that are looked for in one form of the caption.

    Source: what a `tokenizers.Tokenizer` does with its `added_tokens`.
    """

    def __init__(self, tokens: Mapping[int, tokenizers.AddedToken], form: Callable[[str], str]) -> None:
        words = {form(token.content): (number, token.single_word) for number, token in tokens.items()}
        self._numbers = {word: number for word, (number, _) in words.items() if word}
        longest_first = sorted(self._numbers, key=len, reverse=True)
        self._pattern = _either(longest_first, {word for word in longest_first if words[word][1]})

    def split(self, text: str) -> Iterator[str | int]:
        """The caption with the number of each added word in its place."""
        if self._pattern is None:
            yield text
            return
        end = 0
        for match in self._pattern.finditer(text):
            yield text[end : match.start()]
            yield self._numbers[match[0]]
            end = match.end()
        yield text[end:]


def _either(words: list[str], whole: set[str]) -> Any:
    """A pattern for the first of these words that fits; those that are `whole` have no letter beside them."""
    if not words:
        return None
    import regex

    spelt = (regex.escape(word) for word in words)
    return regex.compile(
        "|".join(rf"(?<!\w){each}(?!\w)" if word in whole else each for word, each in zip(words, spelt, strict=True))
    )


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
