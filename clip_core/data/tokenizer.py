"""Captions as token numbers. Every tokenizer is one tokenizer.json of the `tokenizers` library.

The file holds everything (normaliser, truncation, padding, start and end), so that a plain
`tokenizers.Tokenizer.from_file` gives the same ids. The special tokens are in the vocabulary but not
among the file's `added_tokens`: a caption that spells "<|endoftext|>" is text, never the end of the text. Words that
were added to a vocabulary (textual inversion) are tokens of a caption.
Published tokenizers are the exception: captions are read as their weights were trained to (CLIP's own BPE by
clip_text.py, others by cleaning.py), which no such file can say in full, so that the plain library gives the same
numbers for ordinary captions only.

Shapes: N captions, T tokens of the longest of them.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from clip_core.data.cleaning import Cleaning, clean, set_cleaning, take_cleaning
from clip_core.data.clip_text import ClipWords, is_clip_bpe
from clip_core.data.tokenizer_file import library_errors, read_tokenizer, remember_own
from clip_core.errors import TokenizerError
from clip_core.files import write_text

PAD, START, END, UNKNOWN = "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|unk|>"
_SPECIAL = (PAD, END, START, UNKNOWN)  # an end token of number 2 would mean "the highest" to transformers
_UNREADABLE = "the tokenizer cannot read these captions"
_AT_ONCE = 1000  # captions encoded at a time, where they are only counted
DEFAULT_CONTEXT_LENGTH = 77
LARGEST_CONTEXT = 65536  # more than any encoder has positions; captions may be padded to it

Pad = Literal["zero", "end"] | int  # the padding after the end token: id 0, the end token again, or another id

_KINDS = {"WordLevel": "char", "BPE": "bpe"}


class _UnusableError(TokenizerError):
    """What a tokenizer does that it must not, to be said after its path."""


class Captions(Protocol):
    """Captions as token ids, int64 (C, T), or as features of a frozen encoder, float32 (C, F)."""

    def encode(self, captions: list[str]) -> NDArray[Any]: ...


class Tokenizer:
    """Turns captions into `input_ids`: start, tokens, end, padding; truncation keeps the end token."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.encode_special_tokens = True  # for published files, whose special tokens are `added_tokens`
        nothing = inner.encode("")
        empty: list[int] = [i for i, real in zip(nothing.ids, nothing.attention_mask, strict=True) if real]
        if not inner.truncation or not inner.padding or not empty:
            raise ValueError("no truncation, padding or end token")
        if len(empty) >= inner.truncation["max_length"]:
            raise _UnusableError(f"frames captions by {len(empty)} tokens, which leaves no room for their words")
        self.context_length: int = inner.truncation["max_length"]
        self.end_token: int = empty[-1]
        self._pad: int = inner.padding["pad_id"]
        self._fixed_length: int | None = inner.padding["length"]
        self._frame = {self._pad, *empty}
        self._start: int = empty[0]
        inner = self._inner = _settled(inner, self._frame)
        words = {n: token for n, token in inner.get_added_tokens_decoder().items() if not token.special}
        self._clip_words = ClipWords(inner.model, empty[0], empty[-1], words) if is_clip_bpe(inner) else None
        self._has_own_parts = _has_own_parts(inner)
        self._cleaning = take_cleaning(inner)
        numbers = inner.get_vocab(with_added_tokens=True).values()
        self.largest_id: int = max(numbers, default=-1)
        if len(set(numbers)) < len(numbers):
            raise _UnusableError(f"gives {len(numbers) - len(set(numbers)):,} of its words the id of another word")
        outside = sorted(number for number in self._frame if not 0 <= number <= self.largest_id)
        if outside:
            raise _UnusableError(f"frames captions with the ids {str(outside)[:60]}, which no word has")

    @classmethod
    def load(
        cls, path: Path, context_length: int | None = None, *, pad: Pad | None = None, fixed_length: bool | None = None
    ) -> Self:
        """Read a tokenizer.json.

        Args:
            path: the file.
            context_length: longest caption in tokens; None: the file's own, or CLIP's 77.
            pad: what to pad with; None: the file's own padding, or the number 0.
            fixed_length: pad every caption to `context_length`; None: as in the file.
        Raises:
            TokenizerError: if it is missing, damaged, or does not end a text with a token of its own.
        """
        if not path.is_file():
            raise TokenizerError(f"no tokenizer at {path}; give the path of a tokenizer.json.")
        inner = read_tokenizer(path)
        stored = inner.truncation["max_length"] if inner.truncation else DEFAULT_CONTEXT_LENGTH
        return cls.framed(path, inner, context_length or stored, pad=pad, fixed_length=fixed_length)

    @classmethod
    def framed(
        cls,
        path: Path,
        inner: tokenizers.Tokenizer,
        context_length: int,
        *,
        pad: Pad | None = None,
        fixed_length: bool | None = None,
    ) -> Self:
        """The library's tokenizer of a file with truncation and padding, see `load`.

        Raises:
            TokenizerError: if it cannot be used.
        """
        if context_length > LARGEST_CONTEXT:
            raise TokenizerError(
                f"{path} has captions of {context_length:,} tokens; give one for at most {LARGEST_CONTEXT:,}."
            )
        try:
            with library_errors(f"{path} cannot be used"):
                frame(inner, context_length, pad=pad, fixed_length=fixed_length)
                return cls(inner)
        except _UnusableError as error:
            raise TokenizerError(f"{path} {error}; give another.") from None
        except ValueError:
            raise TokenizerError(f"{path} adds no end-of-text token; CLIP needs one that does.") from None

    def save(self, path: Path) -> None:
        """Write the tokenizer.json, whole or not at all."""
        whole = self._inner
        if self._cleaning is not None and self._cleaning is not Cleaning.SIGLIP2:
            whole = tokenizers.Tokenizer.from_str(whole.to_str())
            set_cleaning(whole, self._cleaning)
        content = whole.to_str(pretty=True)
        write_text(path, content)
        remember_own(content)

    @property
    def vocab_size(self) -> int:
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    @property
    def is_own(self) -> bool:
        """Whether it was trained here: then its vocabulary is exactly its model's."""
        return self._inner.token_to_id(PAD) == 0

    @property
    def is_clip(self) -> bool:
        """Whether it is CLIP's own BPE."""
        return self._clip_words is not None

    @property
    def added_words(self) -> tuple[str, ...]:
        """Words that were added to the vocabulary, as textual inversion does."""
        return tuple(t.content for _, t in sorted(self._inner.get_added_tokens_decoder().items()) if not t.special)

    def is_plain(self, text: str) -> bool:
        """Whether a plain `tokenizers.Tokenizer` certainly reads the same ids from the saved file (see above)."""
        if self.is_own:
            return _well_formed(text) == text
        marks = ("&", "<start_of_text>", "<end_of_text>")
        return text.isascii() and text.isprintable() and not any(mark in text for mark in marks)

    @property
    def cleaning(self) -> Cleaning | None:
        """How captions are cleaned for a published tokenizer other than CLIP's own BPE."""
        return None if self.is_own else self._cleaning

    @property
    def pad_id(self) -> int:
        """The id of the padding."""
        return self._pad

    @property
    def pads_to_context(self) -> bool:
        """Whether every caption is padded to `context_length`."""
        return self._fixed_length is not None

    @property
    def kind(self) -> str:
        """`clip`, `char`, `bpe`, or the library's name of another model."""
        if self.is_clip:
            return "clip"
        model = type(self._inner.model).__name__
        return _KINDS.get(model, model.lower())

    def merged_from(self) -> NDArray[np.int64]:
        """The two tokens that byte-pair encoding merged into each, int64 (V, 2); -1 where a token was never merged.

        Raises:
            TokenizerError: if this is no byte-pair encoding.
        """
        model = json.loads(self._inner.to_str())["model"]
        if model["type"] != "BPE":
            raise TokenizerError(
                f"a tokenizer of the kind {self.kind} has no merged tokens; "
                "leave out --bpe-dropout, or add --tokenizer bpe."
            )
        numbers: dict[str, int] = model["vocab"]
        pieces = np.full((self.vocab_size, 2), -1, dtype=np.int64)
        for merge in reversed(model["merges"]):  # so that the first merge of a token is kept
            left, right = merge if isinstance(merge, list) else merge.split(" ")
            if left + right in numbers:  # not so where pieces inside a word are spelt with a prefix
                pieces[numbers[left + right]] = numbers[left], numbers[right]
        return pieces

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Captions as token numbers, int64 (N, T); T is this batch's longest, at most `context_length`."""
        if self._clip_words is not None:
            return self._encode_clip(texts)
        with library_errors(_UNREADABLE, may_panic=not self._has_own_parts):
            encodings = self._inner.encode_batch_fast([self._cleaned(text) for text in texts])
        width = len(encodings[0].ids) if encodings else len(self._inner.encode("").ids)
        return np.array([e.ids for e in encodings], dtype=np.int64).reshape(len(texts), width)

    def _cleaned(self, text: str) -> str:
        return _well_formed(text if self._cleaning is None else clean(text, self._cleaning))

    def _encode_clip(self, texts: Sequence[str]) -> NDArray[np.int64]:
        assert self._clip_words is not None
        room = self.context_length - 2
        rows = [[self._start, *self._clip_words(text)[:room], self.end_token] for text in texts]
        width = self._fixed_length or max(map(len, rows), default=2)
        ids = np.full((len(rows), width), self._pad, dtype=np.int64)
        for row, numbers in zip(ids, rows, strict=True):
            row[: len(numbers)] = numbers
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The (normalised) text of one row, without start, end and padding."""
        if self.is_clip:  # its padding may be the number of "!"
            row = [int(i) for i in ids]
            row = row[: row.index(self.end_token)] if self.end_token in row else row
            return str(self._inner.decode([i for i in row if i != self._start])).replace("</w>", " ").strip()
        return str(self._inner.decode([int(i) for i in ids if int(i) not in self._frame])).strip()

    def count_truncated(self, texts: Sequence[str]) -> int:
        """How many of the captions are longer than `context_length`."""
        if self._clip_words is not None:
            return sum(len(self._clip_words(text)) + 2 > self.context_length for text in texts)
        count = 0
        with library_errors(_UNREADABLE, may_panic=not self._has_own_parts):
            for start in range(0, len(texts), _AT_ONCE):  # an encoding takes several kB
                cleaned = [self._cleaned(text) for text in texts[start : start + _AT_ONCE]]
                count += sum(bool(encoding.overflowing) for encoding in self._inner.encode_batch(cleaned))
        return count

    def untruncated(self, text: str) -> str:
        """A caption, or of one that is truncated the first words, about half of those that are not or more."""
        if len(text.encode(errors="replace")) < self.context_length - 2:
            return text  # a token has a byte or more
        while self.count_truncated([text]) and len(ends := [word.end() for word in re.finditer(r"\S+", text)]) > 1:
            text = text[: ends[len(ends) // 2 - 1]]
        return text


def frame(
    inner: tokenizers.Tokenizer, context_length: int, *, pad: Pad | int | None = None, fixed_length: bool | None = None
) -> None:
    """Set truncation and padding, `pad` being an id or one of its names; what is None stays as the file has it.

    Raises:
        ValueError: if the tokenizer adds no end token.
    """
    cut = inner.truncation or {"direction": "right"}
    inner.no_truncation()
    stored = inner.padding or {"pad_id": 0, "length": None, "direction": "right"}
    inner.no_padding()
    empty: list[int] = inner.encode("").ids
    if not empty:
        raise ValueError("no end token")
    names: dict[Any, int] = {"zero": 0, "end": empty[-1], None: stored["pad_id"]}
    number = pad if isinstance(pad, int) else names[pad]
    fixed = stored["length"] is not None if fixed_length is None else fixed_length
    inner.enable_truncation(context_length, direction=cut["direction"])
    inner.enable_padding(
        direction=stored["direction"],
        pad_id=number,
        pad_token=inner.id_to_token(number) or PAD,
        length=context_length if fixed else None,
    )


def _settled(inner: tokenizers.Tokenizer, frame_ids: Collection[int]) -> tokenizers.Tokenizer:
    """The tokenizer with only those added tokens `special` (never read in a caption) that stand around one, or that
    its own vocabulary has; what was added to the vocabulary is a word, as it is to transformers."""
    added = inner.get_added_tokens_decoder()
    wanted = {
        n: n in frame_ids or (t.special and inner.model.token_to_id(t.content) is not None) for n, t in added.items()
    }
    if all(token.special == wanted[number] for number, token in added.items()):
        return inner
    stored = json.loads(inner.to_str())
    for token in stored["added_tokens"]:
        token["special"] = wanted[token["id"]]
    settled = tokenizers.Tokenizer.from_str(json.dumps(stored))
    settled.encode_special_tokens = True
    return settled


def train_characters(captions: Iterable[str], context_length: int) -> Tokenizer:
    """One token for each character that the captions use; any other character is the unknown one."""
    normaliser = _normaliser()
    seen = {letter for caption in captions for letter in normaliser.normalize_str(_well_formed(caption))}
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *sorted(seen)])}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = _character_words()
    inner.decoder = decoders.Fuse()
    return _framed(inner, context_length)


def vocabulary_for(captions: int) -> int:
    """The largest vocabulary worth learning from so many captions: it grows as their root, from 3,000 to 32,000."""
    return min(max(3000, 30 * math.isqrt(captions)), 32_000)


def train_bpe(captions: Collection[str], vocab_size: int | None, context_length: int) -> Tokenizer:
    """Byte-level BPE: words are split at white space and punctuation; bytes are tokens, so no text is unknown.

    `vocab_size`: the most tokens there may be; None is what suits so many captions.

    Source: Sennrich et al. 2016, on bytes as in Radford et al. 2019.
    """
    learner = tokenizers.Tokenizer(models.BPE())
    learner.normalizer = _normaliser()
    learner.pre_tokenizer = _byte_words()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size or vocabulary_for(len(captions)),
        min_frequency=2,
        special_tokens=[PAD, END, START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator((_well_formed(caption) for caption in captions), trainer)
    learned: dict[str, Any] = json.loads(learner.to_str())
    learned["added_tokens"] = []  # their numbers stay in the vocabulary: see the top of this file
    inner = tokenizers.Tokenizer.from_str(json.dumps(learned))
    inner.decoder = decoders.ByteLevel()
    return _framed(inner, context_length)


def _normaliser() -> Any:
    collapse = normalizers.Replace(Regex(r"\s+"), " ")
    return normalizers.Sequence([normalizers.Lowercase(), normalizers.NFC(), collapse, normalizers.Strip()])


def _character_words() -> Any:
    return pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")


def _byte_words() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=True)


def _has_own_parts(inner: tokenizers.Tokenizer) -> bool:
    """Whether captions are normalised and split as by the tokenizers that are trained here, which never panic."""
    if inner.normalizer is None or inner.pre_tokenizer is None:
        return False
    own = {part.__getstate__() for part in (_character_words(), _byte_words())}
    return inner.normalizer.__getstate__() == _normaliser().__getstate__() and inner.pre_tokenizer.__getstate__() in own


def _framed(inner: tokenizers.Tokenizer, context_length: int) -> Tokenizer:
    """Give a model the project's normaliser, its start and end tokens, truncation and padding."""
    inner.normalizer = _normaliser()
    ends = [(token, inner.token_to_id(token)) for token in (START, END)]
    inner.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    frame(inner, context_length, pad="zero")
    return Tokenizer(inner)


def _well_formed(text: str) -> str:
    """`text` with half surrogates, which JSON can carry and UTF-8 cannot, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
