"""Tokenizers of published weights that are not CLIP's own BPE: of SigLIP, SigLIP2, MetaCLIP 2 and some of open_clip.

tokenizer.json is the tokenizer; tokenizer_config.json, as transformers writes it, has what it often lacks: the
padding, start and end tokens, and the side of padding.
"""

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from clip_core.data.cleaning import Cleaning, set_cleaning
from clip_core.data.clip_text import is_clip_bpe
from clip_core.data.sentencepiece import SENTENCEPIECE, read_sentencepiece
from clip_core.data.tokenizer import Tokenizer
from clip_core.data.tokenizer_file import library_errors, read_tokenizer
from clip_core.errors import TokenizerError
from clip_core.files import load_json

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def find_published_tokenizer(
    folder: Path, context_length: int, *, fixed_length: bool, cleaning: Cleaning | None = None, siglip: bool = False
) -> Tokenizer:
    """The tokenizer beside published weights.

    Args:
        fixed_length: pad every caption to `context_length`.
        cleaning: of captions before they are tokenized, unless tokenizer.json states another.
        siglip: of a SiglipModel, which reads text and end token only, and is cleaned as its kind was trained to be.
    Raises:
        TokenizerError: if there is none, or it is damaged.
    """
    path, said = folder / TOKENIZER, _settings(folder)
    inner = _open(path)
    with library_errors(f"{path} cannot be used"):
        pad = _prepare(path, inner, said, cleaning, siglip=siglip)
        _set_sides(inner, said, context_length)
    return Tokenizer.framed(path, inner, context_length, pad=pad or 0, fixed_length=fixed_length)


def _prepare(
    path: Path, inner: tokenizers.Tokenizer, said: dict[str, Any], cleaning: Cleaning | None, *, siglip: bool
) -> int | None:
    """Set start, end and cleaning.  -> the id to pad with, where a file says it"""
    sentences = type(inner.model).__name__ == "Unigram"  # SigLIP's; SigLIP2 has Gemma's, a BPE
    pad = _padding(inner, said)
    if siglip:
        end = _named(inner, said, "eos_token", "</s>", "<eos>")
        if end is None:
            raise TokenizerError(
                f"{path} has no end token; SigLIP's is </s>, SigLIP2's <eos>: restore it as published."
            )
        _set_frame(inner, None, end)
        pad = end if pad is None and sentences else pad
        cleaning = Cleaning.SIGLIP if sentences else Cleaning.SIGLIP2
        if sentences and said.get("do_lower_case") is False:
            raise TokenizerError(f"{path.with_name(TOKENIZER_CONFIG)} has do_lower_case false, which is not supported.")
    else:
        _frame_as_stated(inner, said)
    if cleaning is not None and not is_clip_bpe(inner):
        set_cleaning(inner, cleaning)
    return pad


def _open(path: Path) -> tokenizers.Tokenizer:
    if path.is_file():
        return read_tokenizer(path)
    for name in SENTENCEPIECE:
        if (path.parent / name).is_file():
            return read_sentencepiece(path.parent / name)
    raise TokenizerError(
        f"the weights in {path.parent} need a tokenizer of their own, and there is neither {TOKENIZER} nor "
        f"{SENTENCEPIECE[0]} beside them; put it there."
    )


def _settings(folder: Path) -> dict[str, Any]:
    try:
        said = load_json(folder / TOKENIZER_CONFIG)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _named(inner: tokenizers.Tokenizer, said: dict[str, Any], key: str, *otherwise: str) -> int | None:
    """The id of a token that tokenizer_config.json names, or of the first of `otherwise` that there is."""
    token = said.get(key)
    token = token.get("content") if isinstance(token, dict) else token
    for name in (token, *otherwise):
        number = inner.token_to_id(name) if isinstance(name, str) else None
        if number is not None:
            return int(number)
    return None


def _padding(inner: tokenizers.Tokenizer, said: dict[str, Any]) -> int | None:
    """The id to pad with: that of tokenizer_config.json, else tokenizer.json's; None where neither says it."""
    number = _named(inner, said, "pad_token")
    if number is None and inner.padding:
        number = int(inner.padding["pad_id"])
    return number


def _frame_as_stated(inner: tokenizers.Tokenizer, said: dict[str, Any]) -> None:
    """The start and end tokens that tokenizer_config.json asks for, where it does."""
    flags = said.get("add_bos_token"), said.get("add_eos_token")
    if all(isinstance(flag, bool) for flag in flags):
        start, end = (_named(inner, said, key) for key in ("bos_token", "eos_token"))
        if flags[1] and end is not None:
            _set_frame(inner, start if flags[0] else None, end)


def _set_frame(inner: tokenizers.Tokenizer, start: int | None, end: int) -> None:
    inner.no_padding()
    inner.no_truncation()
    wanted = [number for number in (start, end) if number is not None]
    if inner.encode("").ids == wanted:
        return
    names = [str(inner.id_to_token(number)) for number in wanted]
    inner.post_processor = processors.TemplateProcessing(
        single=[*names[:-1], "$A", names[-1]], special_tokens=list(zip(names, wanted, strict=True))
    )


def _set_sides(inner: tokenizers.Tokenizer, said: dict[str, Any], context_length: int) -> None:
    """The side of padding and truncation, for `frame`: tokenizer.json's, unless tokenizer_config.json says left."""
    if said.get("padding_side") == "left":
        inner.enable_padding(**((inner.padding or {}) | {"direction": "left"}))
    if said.get("truncation_side") == "left":
        inner.enable_truncation(context_length, direction="left")
