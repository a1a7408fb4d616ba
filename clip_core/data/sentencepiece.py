"""SentencePiece's unigram models as a tokenizer of the `tokenizers` library; the sentencepiece package is not needed.

Source: sentencepiece_model.proto of Kudo & Richardson 2018.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from clip_core.data.tokenizer_file import library_errors, try_tokenizer
from clip_core.errors import TokenizerError
from clip_core.files import read_regular
from clip_core.protobuf import TornError, fields

SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")  # as Hugging Face's folders call it
_LARGEST_FILE = 2**26  # bytes
_PIECES, _TRAINER, _NORMALISER = 1, 2, 3  # fields of a model
_PIECE, _SCORE, _KIND = 1, 2, 3  # of a piece
_UNKNOWN = 2  # kind of a piece
_MODEL_TYPE, _UNIGRAM, _BYTE_FALLBACK = 3, 1, 35  # of the trainer
_CHARACTER_MAP, _PREFIX, _COLLAPSE = 2, 3, 4  # of the normaliser


class _Model(NamedTuple):
    pieces: list[tuple[str, float]]
    unknown: int
    trainer: dict[int, Any]
    normaliser: dict[int, Any]


def read_sentencepiece(path: Path) -> tokenizers.Tokenizer:
    """A unigram model with its normalisation; it adds no start or end token.

    Raises:
        TokenizerError: if the file is damaged, or is not a unigram model.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise TokenizerError(f"{path} is larger than any SentencePiece model of published weights; fetch it again.")
        content = read_regular(path)
        model = _read(content)
    except (TornError, UnicodeDecodeError, struct.error, LookupError, TypeError, OSError) as error:
        raise TokenizerError(f"{path} is not a readable SentencePiece model ({error}); fetch it again.") from None
    if not model.pieces or model.trainer.get(_MODEL_TYPE, _UNIGRAM) != _UNIGRAM:
        raise TokenizerError(
            f"{path} is not a unigram model of SentencePiece; write its tokenizer.json once with transformers' "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )
    try_tokenizer(path, content, "sentencepiece")
    with library_errors(f"{path} cannot be used"):
        return _built(model)


def build_sentencepiece(content: bytes) -> tokenizers.Tokenizer:
    """The tokenizer of a file's content; raises whatever the library and damaged bytes raise."""
    return _built(_read(content))


def _read(content: bytes) -> _Model:
    pieces: list[tuple[str, float]] = []
    unknown = 0
    trainer: dict[int, Any] = {}
    normaliser: dict[int, Any] = {}
    for field, value in fields(memoryview(content)):
        if not isinstance(value, memoryview):
            continue
        if field == _PIECES:
            piece: dict[int, Any] = dict(fields(value))
            if piece.get(_KIND) == _UNKNOWN:
                unknown = len(pieces)
            pieces.append((str(piece[_PIECE], "utf-8"), struct.unpack("<f", piece.get(_SCORE, bytes(4)))[0]))
        elif field == _TRAINER:
            trainer = dict(fields(value))
        elif field == _NORMALISER:
            normaliser = dict(fields(value))
    return _Model(pieces, unknown, trainer, normaliser)


def _built(model: _Model) -> tokenizers.Tokenizer:
    pieces, unknown, trainer, normaliser = model
    inner = tokenizers.Tokenizer(
        models.Unigram(pieces, unk_id=unknown, byte_fallback=bool(trainer.get(_BYTE_FALLBACK, 0)))
    )
    steps: list[Any] = []
    if normaliser.get(_CHARACTER_MAP):
        steps.append(normalizers.Precompiled(bytes(normaliser[_CHARACTER_MAP])))
    if normaliser.get(_COLLAPSE, 1):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        inner.normalizer = normalizers.Sequence(steps)
    scheme = "always" if normaliser.get(_PREFIX, 1) else "never"
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return inner
