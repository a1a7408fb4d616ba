"""Static token vectors as a text encoder: one vector for each token, and their mean for a caption.

A folder with tokenizer.json and a safetensors file that holds one matrix (vocabulary, F): WordLlama's and Model2Vec's
form.
"""

from pathlib import Path

import torch
from tokenizers import processors
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.data.tokenizer import Tokenizer
from clip_core.data.tokenizer_file import read_tokenizer
from clip_core.errors import CheckpointError, TokenizerError, UsageError
from clip_core.model.encoders.base import EncoderInfo, FrozenEncoder
from clip_core.model.encoders.files import absolute, identity_of, licence_of, read_settings
from clip_core.model.torch_files import StoredTensor
from clip_core.model.weight_files import open_weights

_CONTEXT = 128
_ENDS = ("</s>", "[SEP]", "<|endoftext|>", "[PAD]", "<pad>")  # tokens that may end a caption without being a word


class StaticVectors(FrozenEncoder):
    """Mean of the vectors of a caption's tokens; its end token and the padding do not count."""

    def __init__(self, info: EncoderInfo, tokenizer: Tokenizer, vectors: Tensor, normalise: bool) -> None:
        super().__init__(info, tokenizer)
        vocabulary, width = vectors.shape
        self.vectors = nn.Embedding(vocabulary, width, _weight=vectors.float())
        self.normalise = normalise
        self.end_token = tokenizer.end_token
        self.frozen()

    def forward(self, x: Tensor) -> Tensor:
        position = torch.arange(x.shape[1], device=x.device)
        ends = x == self.end_token
        length = torch.where(ends, position, x.shape[1]).amin(dim=1, keepdim=True)  # tokens before the first end
        words = (position < length)[..., None].to(self.vectors.weight.dtype)  # (C, T, 1)
        mean = (self.vectors(x) * words).sum(dim=1) / words.sum(dim=1).clamp(min=1.0)
        return F.normalize(mean, dim=-1) if self.normalise else mean


def is_static(folder: Path) -> bool:
    """Whether a folder holds token vectors: a tokenizer and one safetensors file with one matrix."""
    file = _matrix_file(folder)
    return file is not None and (folder / "tokenizer.json").is_file() and _matrix(file) is not None


def resolve_static(name: str, folder: Path, context_length: int | None = None) -> EncoderInfo:
    """The facts of static token vectors.

    Raises:
        CheckpointError, TokenizerError, UsageError: as `load_static`.
    """
    return _open(name, folder, context_length)[0]


def load_static(name: str, folder: Path, context_length: int | None = None) -> StaticVectors:
    """Read a folder with token vectors.

    Raises:
        CheckpointError: if it holds no matrix of token vectors.
        TokenizerError: if its tokenizer is missing or does not fit the matrix.
    """
    info, tokenizer, stored, normalise = _open(name, folder, context_length)
    return StaticVectors(info, tokenizer, stored.read(), normalise)


def _open(name: str, folder: Path, context_length: int | None) -> tuple[EncoderInfo, Tokenizer, StoredTensor, bool]:
    file = _matrix_file(folder)
    stored = _matrix(file) if file is not None else None
    if file is None or stored is None:
        raise CheckpointError(f"{folder} holds no token vectors: one safetensors file with one matrix.")
    length = context_length or _CONTEXT
    if length < 3:
        raise UsageError(f"--context-length is {length}; a caption needs at least 3 tokens.")
    tokenizer = _tokenizer(folder / "tokenizer.json", length)
    if tokenizer.vocab_size > stored.shape[0]:
        raise TokenizerError(
            f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size:,} tokens, {file.name} vectors of "
            f"{stored.shape[0]:,}; put the tokenizer.json that belongs to it there."
        )
    config = folder / "config.json"
    normalise = bool(read_settings(config).get("normalize", False)) if config.is_file() else False
    info = EncoderInfo(
        side="text",
        source="static",
        name=absolute(name),
        architecture=f"static token vectors ({stored.shape[0]:,} x {stored.shape[1]})",
        identity=identity_of([file, folder / "tokenizer.json"], ["static", length, normalise]),
        parameters=stored.shape[0] * stored.shape[1],
        licence=licence_of(folder),
        feature_size=stored.shape[1],
        context_length=length,
        end_token=tokenizer.end_token,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        notes=("the order of the words has no effect",),
    )
    return info, tokenizer, stored, normalise


def _matrix_file(folder: Path) -> Path | None:
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return files[0] if len(files) == 1 else None


def _matrix(file: Path) -> StoredTensor | None:
    tensors = list(open_weights(file).tensors.values())
    return tensors[0] if len(tensors) == 1 and len(tensors[0].shape) == 2 else None


def _tokenizer(path: Path, context_length: int) -> Tokenizer:
    """The tokenizer with an end token in place of its own start and end, which have no part in the mean.

    Raises:
        TokenizerError: if it is damaged, or has no token that can end a caption.
    """
    inner = read_tokenizer(path)
    end = next((token for token in _ENDS if inner.token_to_id(token) is not None), None)
    if end is None:
        raise TokenizerError(f"{path} has none of the tokens {', '.join(_ENDS)}, one of which would end a caption.")
    number = inner.token_to_id(end)
    inner.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, number)])
    return Tokenizer.framed(path, inner, context_length, pad="end", fixed_length=False)
