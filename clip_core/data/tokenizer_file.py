"""Reading a tokenizer.json that may come from a stranger.

The `tokenizers` library ends the whole process, or panics, on some files: a normaliser that lets a text grow without
bound, a character map whose length is a lie. Such a file is refused before the library has it (or before it reads a
text with it); what the library raises on others becomes one sentence.
"""

import base64
import binascii
import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from clip_core.errors import ClipError, TokenizerError
from clip_core.files import read_regular
from clip_core.text import printable

_MOST_GROWTH = 256.0  # that a normaliser may let a text grow; those of published tokenizers stay below 20
_DEEPEST = 16
_ESCAPED_LETTERS = re.compile(rb"\\u00[2-7][0-9a-fA-F]")  # which no writer escapes, and which could hide a name


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer of a tokenizer.json.

    Raises:
        TokenizerError: if it is damaged, or would let the library run out of memory.
    """
    try:
        content = read_regular(path)
        if b"recompiled" in content or _ESCAPED_LETTERS.search(content):
            _check_character_maps(path, content)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} is not a tokenizer.json ({printable(str(error), 120)}); give another.") from None
    with library_errors(f"{path} is not a tokenizer.json"):
        inner = tokenizers.Tokenizer.from_str(text)
    if inner.normalizer is not None and _growth(json.loads(inner.normalizer.__getstate__())) > _MOST_GROWTH:
        raise TokenizerError(f"{path} has a normaliser that lets a caption grow without bound; give another.")
    return inner


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Whatever the tokenizers library raises inside becomes a TokenizerError, `what (reason)`; a ValueError stays."""
    try:
        yield
    except (ClipError, ValueError):
        raise
    except BaseException as error:  # the library raises plain Exceptions, and panics are no Exceptions at all
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what} ({printable(str(error), 120)}); give another.") from None


def _growth(normaliser: dict[str, Any], depth: int = 0) -> float:
    """By how much a text may grow, as a factor; infinite where that cannot be said."""
    kind = normaliser.get("type")
    if kind == "Sequence":
        factor = 1.0 if depth < _DEEPEST else float("inf")
        for step in normaliser["normalizers"]:
            factor *= _growth(step, depth + 1)
        return factor
    if kind == "Replace":
        pattern, content = normaliser["pattern"], len(normaliser["content"].encode())
        if pattern.get("String"):
            return max(1.0, content / len(pattern["String"].encode()))
        return 1.0 + content  # a pattern may fit between any two letters
    if kind == "Prepend":
        return 1.0 + len(normaliser["prepend"])
    return 1.0


def _check_character_maps(path: Path, content: bytes) -> None:
    maps: list[Any] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        maps.extend(value for name, value in pairs if name == "precompiled_charsmap")

    try:
        json.loads(content, object_pairs_hook=look)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not a tokenizer.json ({printable(str(error), 120)}); give another.") from None
    for each in maps:
        if each and not _is_character_map(each):
            raise TokenizerError(f"{path} has a damaged precompiled_charsmap; give another.")


def _is_character_map(value: Any) -> bool:
    """Whether the length that stands first, of the trie in bytes, is not more than there is.

    Source: the format of SentencePiece's precompiled normalisation.
    """
    try:
        raw = base64.b64decode(value, validate=True)
        (size,) = struct.unpack_from("<I", raw)
    except (TypeError, ValueError, binascii.Error, struct.error):
        return False
    return bool(0 < size <= len(raw) - 4 and size % 4 == 0)
