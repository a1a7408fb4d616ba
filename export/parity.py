"""Parity: every ONNX file against the PyTorch model, on the same images and captions.

Shapes: N inputs, S image side, T tokens, D embedding size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clip_core.data.tokenizer import Tokenizer
from clip_core.inference.manifest import Parity, ParityRow, Precision, Recall, Variant, onnx_files
from clip_core.model.clip import CLIP
from clip_core.scoring import FloatArray, IntArray, positive_ranks, similarity
from export.sessions import Array, Encode, in_batches, least_and_mean_cosine, open_onnx

TOLERANCE = 1e-4
BATCHES = (8, 3, 1)
_FEW = 16  # inputs at the smaller batches
_TIE = 1e-6  # cosines that differ by less are equal in float32


@dataclass(frozen=True)
class PairSamples:
    """Pairs for recall@1: distinct images and captions, and for each pair the row of both."""

    pixel_values: FloatArray  # (I, 3, S, S)
    captions: list[str]
    image_rows: IntArray
    caption_rows: IntArray


@dataclass(frozen=True)
class Samples:
    """Inputs of the comparison: `pixel_values` (N, 3, S, S) of real images, and real captions; pairs where known."""

    pixel_values: FloatArray
    captions: list[str]
    pairs: PairSamples | None = None


@dataclass(frozen=True)
class _Case:
    batch: int
    tokens: int | None
    inputs: Array
    expected: FloatArray


class Reference:
    """What the PyTorch model gives, computed once for all variants."""

    def __init__(self, model: CLIP, tokenizer: Tokenizer, samples: Samples) -> None:
        image, text = torch_encode(model.encode_image), torch_encode(model.encode_text)
        pixels, whole = samples.pixel_values, tokenizer.encode(samples.captions)  # (N, T)
        self.captions = len(samples.captions)
        self.images = [
            _Case(batch, None, each, in_batches(image, each, batch))
            for batch, each in ((BATCHES[0], pixels), *((batch, pixels[:_FEW]) for batch in BATCHES[1:]))
        ]
        full = np.full((len(whole), tokenizer.context_length), tokenizer.pad_id, np.int64)  # padded to the context
        full[:, : whole.shape[1]] = whole
        ids = [(BATCHES[0], whole), (BATCHES[0], full), *((batch, whole[:_FEW]) for batch in BATCHES[1:])]
        ids.append((1, tokenizer.encode([""])))
        self.texts = [_Case(batch, each.shape[1], each, in_batches(text, each, batch)) for batch, each in ids]
        self.pairs = samples.pairs
        self.pair_ids: IntArray | None = None
        self.recall: float | None = None
        if self.pairs is not None:
            self.pair_ids = tokenizer.encode(self.pairs.captions)
            self.recall = self._recall(image, text)

    def compare(self, folder: Path, precision: Precision, how: dict[str, str] | None = None) -> Variant:
        """The variant of a precision whose files are below `folder`, with its parity."""
        vision, text = (open_onnx(folder / name) for name in onnx_files(precision))
        rows, first = [], []
        for name, run, cases in zip(onnx_files(precision), (vision, text), (self.images, self.texts), strict=True):
            found = [in_batches(run, case.inputs, case.batch) for case in cases]
            rows += [_row(name, case, theirs) for case, theirs in zip(cases, found, strict=True)]
            first.append(found[0])
        expected = similarity(self.images[0].expected, self.texts[0].expected)
        recall = None
        if self.pairs is not None and self.recall is not None:
            queries = len(self.pairs.pixel_values) + len(self.pairs.captions)
            recall = Recall(
                pairs=len(self.pairs.image_rows),
                queries=queries,
                before=self.recall,
                after=self._recall(vision, text),
            )
        parity = Parity(
            tolerance=TOLERANCE,
            exact=precision == "fp32",
            images=len(self.images[0].inputs),
            captions=self.captions,
            top1_agreement=top1_agreement(expected, similarity(*first)),
            recall=recall,
            rows=tuple(rows),
        )
        return Variant(precision=precision, vision=rows[0].file, text=rows[-1].file, how=how or {}, parity=parity)

    def _recall(self, image: Encode, text: Encode) -> float:
        """Recall@1 over the queries of both directions."""
        assert self.pairs is not None
        assert self.pair_ids is not None
        images = in_batches(image, self.pairs.pixel_values, BATCHES[0])
        texts = in_batches(text, self.pair_ids, BATCHES[0])
        image_rows, text_rows = self.pairs.image_rows, self.pairs.caption_rows
        ranks = (
            positive_ranks(images, texts, image_rows, text_rows),
            positive_ranks(texts, images, text_rows, image_rows),
        )
        return float((np.concatenate(ranks) == 0).mean())


def top1_agreement(reference: FloatArray, other: FloatArray) -> float:
    """Fraction of rows and columns with the largest entry at the same position; a tie of the reference counts.

    (N, M), (N, M) -> a fraction in [0, 1]
    """
    agree = []
    for ours, theirs in ((reference, other), (reference.T, other.T)):
        chosen = np.take_along_axis(ours, theirs.argmax(axis=1)[:, None], axis=1)[:, 0]
        agree.append(chosen >= ours.max(axis=1) - _TIE)
    return float(np.concatenate(agree).mean())


def table(variant: Variant) -> str:
    """The parity of a variant as text, one line per comparison."""
    parity = variant.parity
    lines = [f"{'file':<34}{'batch':>6}{'tokens':>8}{'inputs':>8}{'max |diff|':>12}{'mean cos':>11}{'min cos':>11}"]
    lines += [
        f"{row.file:<34}{row.batch:>6}{row.tokens or '':>8}{row.inputs:>8}"
        f"{row.max_abs_diff:>12.1e}{row.mean_cosine:>11.7f}{row.least_cosine:>11.7f}"
        for row in parity.rows
    ]
    recall = parity.recall
    lines.append(f"{variant.precision}: {summary(parity)}: {'accepted' if parity.accepted else 'rejected'}")
    if recall:
        lines.append(
            f"{variant.precision}: recall@1 {recall.before:.1%} in PyTorch, {recall.after:.1%} in ONNX, over "
            f"{recall.pairs} pairs"
        )
    lines += [f"{variant.precision}: {file} is {how}" for file, how in variant.how.items()]
    return "\n".join(lines)


def summary(parity: Parity) -> str:
    """One line, without the verdict."""
    limit = f" (tolerance {parity.tolerance:.0e})" if parity.exact else ""
    return (
        f"top-1 agreement {parity.top1_agreement:.1%} over {parity.images} images and {parity.captions} captions, "
        f"max |diff| {parity.max_abs_diff:.1e}{limit}, least cosine {parity.least_cosine:.5f}"
    )


def _row(file: str, case: _Case, theirs: FloatArray) -> ParityRow:
    """One line of the table. NaN counts as an infinite difference."""
    difference = np.nan_to_num(np.abs(case.expected - theirs), nan=np.inf)
    least, mean = least_and_mean_cosine([case.expected], [theirs])
    return ParityRow(
        file=file,
        batch=case.batch,
        tokens=case.tokens,
        inputs=len(case.inputs),
        max_abs_diff=min(float(difference.max()), 1e30),
        mean_cosine=mean,
        least_cosine=least,
    )


def torch_encode(encode: Callable[[torch.Tensor], torch.Tensor]) -> Encode:
    """One tower as a function of NumPy arrays."""

    def run(inputs: Array) -> FloatArray:
        with torch.inference_mode():
            return np.asarray(encode(torch.from_numpy(inputs)).numpy())

    return run
