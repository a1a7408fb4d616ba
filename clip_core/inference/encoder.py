"""The Encoder protocol, and the batching that both backends share.

Shapes: N inputs, B rows of a batch, S side of the image, T tokens, D embedding size.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from clip_core.data.preprocess import ImageSource, load_image, normalise, resize_and_crop
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import BackendError, TokenizerError
from clip_core.inference.inputs import as_images, as_texts
from clip_core.inference.threshold import Threshold
from clip_core.network import Preprocessing
from clip_core.run.metrics import best_by
from clip_core.scoring import FloatArray, IntArray
from clip_core.text import printable

Backend = Literal["torch", "onnx"]
PixelArray = NDArray[np.uint8]
Item = TypeVar("Item")
Inputs = TypeVar("Inputs", FloatArray, IntArray)

_LENGTH_ERROR = 0.01  # of the length 1 of an embedding; fp16 rounds to 0.001
BATCH = 64  # rows that go through a tower at once


@dataclass(frozen=True)
class About:
    """Facts of a loaded model.

    `identity`: a hash of the image tower's weights; embeddings of equal identity can be compared.
    `checkpoint`: the checkpoint's name in its run, "" for published weights. `scores`: its validation scores.
    """

    backend: Backend
    source: str  # the path that was loaded
    identity: str
    device: str
    embed_dim: int
    logit_scale: float
    preprocessing: Preprocessing
    step: int = 0
    checkpoint: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    precision: str = "fp32"
    classes: tuple[str, ...] | None = None  # the captions of the training pairs, where they are classes
    threshold: Threshold | None = None  # of cosines, where the model's export measured one
    note: str | None = None  # what a user should know: "bundle of step 1020, best checkpoint is step 1374"

    @property
    def image_size(self) -> int:
        return self.preprocessing.image_size

    @property
    def best_metric(self) -> str | None:
        """The metric that the best checkpoint is chosen by, with its value: `mean recall 68.7%`."""
        metric = best_by(self.scores)
        return f"{metric.label} {metric.text(self.scores[metric.key])}" if metric.key in self.scores else None

    @property
    def facts(self) -> dict[str, str | int | None]:
        """For JSON: `model`, `checkpoint`, `step`, `note`, `backend`, `device` and `precision`."""
        names = ("checkpoint", "step", "note", "backend", "device", "precision")
        return {"model": self.source} | {name: getattr(self, name) for name in names}

    @property
    def summary(self) -> str:
        """One line for a terminal: `runs/birds, step 1,374, mean recall 68.7%, onnx on cpu`."""
        step = f"step {self.step:,}" if self.checkpoint else None
        backend = self.backend if self.precision == "fp32" else f"{self.backend} {self.precision}"
        parts = (printable(self.source), step, self.best_metric, f"{backend} on {self.device}")
        return ", ".join(part for part in parts if part)


class Encoder(Protocol):
    """Images and texts to L2-normalised float32 embeddings, in the order given; batched inside."""

    @property
    def about(self) -> About: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def encode_images(self, images: Iterable[ImageSource]) -> FloatArray:
        """Paths, PIL images or arrays -> (N, D).

        Raises:
            ImageError: naming the first image that cannot be decoded.
        """
        ...

    def encode_pixels(self, pixels: PixelArray) -> FloatArray:
        """Images already resized and cropped, uint8 (N, S, S, 3) -> (N, D)."""
        ...

    def encode_texts(self, texts: Iterable[str]) -> FloatArray:
        """Texts -> (N, D); longer texts are truncated to the context, with the end token kept."""
        ...


class BatchedEncoder(ABC):
    """An Encoder from two functions on one batch each."""

    def __init__(self, about: About, tokenizer: Tokenizer) -> None:
        self.about = about
        self.tokenizer = tokenizer

    @abstractmethod
    def _images(self, pixel_values: FloatArray) -> FloatArray:
        """(B, 3, S, S) -> (B, D)"""

    @abstractmethod
    def _texts(self, input_ids: IntArray) -> FloatArray:
        """(B, T) -> (B, D)"""

    def encode_images(self, images: Iterable[ImageSource]) -> FloatArray:
        prepared, images = self.about.preprocessing, as_images(images)
        with ThreadPoolExecutor(cores()) as pool:
            batches = (
                self.encode_pixels(np.stack(list(pool.map(lambda image: read_pixels(image, prepared), batch))))
                for batch in _batches(images)
            )
            return _joined(batches, self.about.embed_dim)

    def encode_pixels(self, pixels: PixelArray) -> FloatArray:
        return _joined(
            (
                self._checked(self._images, normalise(pixels[start : start + BATCH], self.about.preprocessing))
                for start in range(0, len(pixels), BATCH)
            ),
            self.about.embed_dim,
        )

    def encode_texts(self, texts: Iterable[str]) -> FloatArray:
        """Texts of similar length go through the tower together, so that little padding is computed."""
        given = as_texts(texts)
        order = sorted(range(len(given)), key=lambda row: len(given[row]))
        in_order = [given[row] for row in order]
        embeds = _joined(
            (self._checked(self._texts, self.tokenizer.encode(batch)) for batch in _batches(in_order)),
            self.about.embed_dim,
        )
        answer = np.empty_like(embeds)
        answer[order] = embeds
        return answer

    def _checked(self, encode: Callable[[Inputs], FloatArray], inputs: Inputs) -> FloatArray:
        """The embeddings of one batch, if they are what an Encoder promises.

        Raises:
            BackendError: if they are not one finite vector of length 1 for each input.
        """
        embeds, wanted = encode(inputs), (len(inputs), self.about.embed_dim)
        if embeds.shape != wanted:
            problem = f"embeddings of shape {embeds.shape} in place of {wanted}"
        elif not np.isfinite(embeds).all():
            problem = "embeddings that are not finite (NaN or infinite)"
        elif np.abs(np.linalg.norm(embeds, axis=1) - 1).max(initial=0) > _LENGTH_ERROR:
            problem = "embeddings that are not of length 1"
        else:
            return embeds
        raise BackendError(f"{printable(self.about.source)} gives {problem}; it is damaged: export or train it again.")


def read_pixels(image: ImageSource, preprocessing: Preprocessing) -> PixelArray:
    """One image as the model's uint8 (S, S, 3).

    Raises:
        ImageError: if it cannot be decoded.
    """
    return resize_and_crop(load_image(image), preprocessing)


def check_tokenizer(tokenizer: Tokenizer, *, vocab_size: int, end_token: int, context_length: int) -> None:
    """Refuse a tokenizer that does not belong to the model: it would give wrong embeddings without an error.

    Raises:
        TokenizerError: naming what differs.
    """
    found = (tokenizer.vocab_size, tokenizer.end_token, tokenizer.context_length)
    wanted = (vocab_size, end_token, context_length)
    room = vocab_size > tokenizer.vocab_size and not tokenizer.is_own  # published tables may be rounded up
    if found[1:] != wanted[1:] or (found[0] != wanted[0] and not room) or tokenizer.largest_id >= vocab_size:
        raise TokenizerError(
            "tokenizer.json does not fit the model: its vocabulary, end token and context are "
            f"{found}, the model's {wanted}; restore the tokenizer.json that the model was trained with."
        )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _joined(batches: Iterable[FloatArray], embed_dim: int) -> FloatArray:
    return np.concatenate([np.empty((0, embed_dim), np.float32), *batches]).astype(np.float32, copy=False)
