"""CLIP's own BPE as a tokenizer.json of the `tokenizers` library.

Its vocabulary is not part of this project: it comes from the weights' folder, or from another library that is
installed here.
"""

import gzip
import importlib.util
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from clip_core.data.clip_text import byte_symbols
from clip_core.data.tokenizer import END, START, Pad, Tokenizer, frame
from clip_core.errors import TokenizerError
from clip_core.files import load_json, parse_json

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"  # as OpenAI published it
_MERGES = 49152 - 256 - 2  # of its lines, those that CLIP uses
_LARGEST_FILE = 2**26  # bytes; CLIP's vocabulary has about one million
_NAMES = ((START, END), ("<start_of_text>", "<end_of_text>"))
_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_tokenizer(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    context_length: int,
    *,
    pad: Pad = "zero",
    fixed_length: bool = False,
) -> Tokenizer:
    """CLIP's BPE from its vocabulary.

    Args:
        vocab: token -> number, with start and end under Hugging Face's or open_clip's names.
        merges: pairs of tokens, the first learnt first.
        context_length: longest caption in tokens, start and end included.
        pad: the token after the end token: id 0, as in OpenAI's and open_clip's CLIP, or the end token
            again, as Hugging Face has it. A causal text tower gives the same answer for both.
        fixed_length: pad every caption to `context_length`.
    Raises:
        TokenizerError: if the vocabulary has no start or end token, or a merge makes a token that is not in it.
    """
    start, end = next((names for names in _NAMES if all(name in vocab for name in names)), (None, None))
    if start is None or end is None:
        raise TokenizerError(f"the vocabulary has no {START} and {END}, so it is not CLIP's; give CLIP's own.")
    try:
        model = models.BPE(vocab=dict(vocab), merges=list(merges), end_of_word_suffix="</w>", fuse_unk=False)
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(
            f"vocabulary and merges do not belong together ({error}); give those of one file."
        ) from None
    inner = tokenizers.Tokenizer(model)
    collapse = normalizers.Replace(Regex(r"\s+"), " ")
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), collapse, normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocab[start]), (end, vocab[end])]
    )
    frame(inner, context_length, pad=pad, fixed_length=fixed_length)
    return Tokenizer(inner)


def find_clip_tokenizer(
    folder: Path | None, context_length: int, *, pad: Pad | None = None, fixed_length: bool = False
) -> Tokenizer:
    """The tokenizer of published weights: from their folder, else CLIP's BPE from a library that is installed.

    Args:
        folder: may hold tokenizer.json (of any kind), vocab.json with merges.txt, or OpenAI's vocabulary.
        context_length: longest caption in tokens.
        pad: as for `clip_tokenizer`; None: as in the folder's tokenizer_config.json, else id 0.
        fixed_length: pad every caption to `context_length`.
    Raises:
        TokenizerError: if none is found, saying which files to put where, or if one is damaged.
    """
    if folder is not None:
        pad = pad or _stated_pad(folder)
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.load(folder / "tokenizer.json", context_length, pad=pad, fixed_length=fixed_length)
    for place in _places(folder):
        found = _vocabulary(place)
        if found is None:
            continue
        try:
            return clip_tokenizer(*found, context_length, pad=pad or "zero", fixed_length=fixed_length)
        except TokenizerError as error:
            raise TokenizerError(f"{place}: {error}") from None
    where = f"beside the weights in {folder}" if folder else "beside the weights"
    raise TokenizerError(
        f"CLIP's vocabulary is not here; put tokenizer.json, or vocab.json with merges.txt, or {VOCABULARY} "
        f"{where}, or install open_clip (pip install open_clip_torch)."
    )


def _places(folder: Path | None) -> Iterator[Path]:
    """Folders that may hold CLIP's vocabulary, the nearest first."""
    if folder is not None:
        yield folder
    for package in ("open_clip", "clip"):  # found, not imported: both would import PyTorch
        spec = importlib.util.find_spec(package)
        yield from map(Path, (spec.submodule_search_locations or ()) if spec else ())
    cache = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface", "hub")
    # what transformers has fetched before
    yield from sorted(Path(cache).expanduser().glob("models--openai--clip-vit-*/snapshots/*"))


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]] | None:
    """Vocabulary and merges of a folder, or None where it has none."""
    vocab, merges, packed = folder / "vocab.json", folder / "merges.txt", folder / VOCABULARY
    if vocab.is_file() and merges.is_file():
        return _numbers(vocab), _pairs(merges, _text(merges).split("\n"))
    if packed.is_file():
        pairs = _pairs(packed, _text(packed).split("\n")[: _MERGES + 1])
        symbols = sorted(byte_symbols())
        words = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, pairs), START, END]
        return {word: number for number, word in enumerate(words)}, pairs
    return None


def _numbers(path: Path) -> dict[str, int]:
    try:
        vocab = parse_json(_text(path))
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON ({error}); fetch it again.") from None
    numbers = [n for n in vocab.values() if isinstance(n, int)] if isinstance(vocab, dict) else []
    if not isinstance(vocab, dict) or len(numbers) < len(vocab) or {*numbers} != {*range(len(vocab))}:
        raise TokenizerError(f"{path} does not give each token a number of its own, from 0 on; fetch it again.")
    return vocab


def _pairs(path: Path, lines: Sequence[str]) -> list[tuple[str, str]]:
    """The merges, one a line, below a version line."""
    if lines and "#version" in lines[0]:
        lines = lines[1:]
    pairs = [tuple(line.split()) for line in lines if line.strip()]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise TokenizerError(f"{path} has a line that is no pair of tokens, {' '.join(wrong)[:40]!r}; fetch it again.")
    return [(first, second) for first, second in pairs]


def _text(path: Path) -> str:
    """A file's text, unpacked if it is packed; never more than a vocabulary can have."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            content = handle.read(_LARGEST_FILE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TokenizerError(f"{path} cannot be read ({error}); fetch it again.") from None
    if len(content) > _LARGEST_FILE:
        raise TokenizerError(f"{path} is larger than any vocabulary of CLIP; fetch it again.")
    try:
        return bytes(content).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not text ({error}); fetch it again.") from None


def _stated_pad(folder: Path) -> Pad | None:
    """What a Hugging Face folder pads captions with."""
    try:
        said: Any = load_json(folder / "tokenizer_config.json")
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict):
        return None
    names = [
        token.get("content") if isinstance(token, dict) else token
        for token in map(said.get, ("pad_token", "eos_token"))
    ]
    if names[0] is None:
        return None
    return "end" if names[0] == names[1] else "zero"
