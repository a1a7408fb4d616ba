"""Parity: every ONNX file against the PyTorch model, on the same images and captions.

Shapes: N inputs, S image side, T tokens, D embedding size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clip_core.data.tokenizer import Tokenizer
from clip_core.inference.bundle import TEXT, VISION, Parity, ParityRow
from clip_core.inference.onnx_encoder import PROVIDERS, make_session
from clip_core.model.clip import CLIP
from clip_core.scoring import FloatArray, IntArray, similarity

TOLERANCE = 1e-4
BATCHES = (8, 3, 1)
_FEW = 16  # inputs at the smaller batches
_TIE = 1e-6  # cosines that differ by less are equal in float32

Encode = Callable[[FloatArray | IntArray], FloatArray]


@dataclass(frozen=True)
class Samples:
    """Inputs of the comparison: `pixel_values` (N, 3, S, S) of real images, and real captions."""

    pixel_values: FloatArray
    captions: list[str]


def measure(model: CLIP, folder: Path, tokenizer: Tokenizer, samples: Samples) -> Parity:
    """Compare the ONNX files below `folder` with `model`, at several batch sizes and token lengths."""
    vision = _onnx(folder / VISION, "pixel_values")
    text = _onnx(folder / TEXT, "input_ids")
    image_torch, text_torch = _torch(model.encode_image), _torch(model.encode_text)
    rows = []
    images = _both(image_torch, vision, samples.pixel_values, BATCHES[0])
    rows.append(_row(VISION, BATCHES[0], None, *images))
    for batch in BATCHES[1:]:
        rows.append(_row(VISION, batch, None, *_both(image_torch, vision, samples.pixel_values[:_FEW], batch)))
    whole = tokenizer.encode(samples.captions)  # (N, T)
    texts = _both(text_torch, text, whole, BATCHES[0])
    rows.append(_row(TEXT, BATCHES[0], whole.shape[1], *texts))
    full = np.full((len(whole), tokenizer.context_length), tokenizer.pad_id, np.int64)  # padded to the whole context
    full[:, : whole.shape[1]] = whole
    for batch, input_ids in ((BATCHES[0], full), *((batch, whole[:_FEW]) for batch in BATCHES[1:])):
        rows.append(_row(TEXT, batch, input_ids.shape[1], *_both(text_torch, text, input_ids, batch)))
    shortest = tokenizer.encode([""])
    rows.append(_row(TEXT, 1, shortest.shape[1], *_both(text_torch, text, shortest, 1)))
    return Parity(
        tolerance=TOLERANCE,
        images=len(samples.pixel_values),
        captions=len(samples.captions),
        top1_agreement=top1_agreement(*(similarity(i, t) for i, t in zip(images, texts, strict=True))),
        rows=tuple(rows),
    )


def top1_agreement(reference: FloatArray, other: FloatArray) -> float:
    """Fraction of rows and columns with the largest entry at the same position; a tie of the reference counts.

    (N, M), (N, M) -> a fraction in [0, 1]
    """
    agree = []
    for ours, theirs in ((reference, other), (reference.T, other.T)):
        chosen = np.take_along_axis(ours, theirs.argmax(axis=1)[:, None], axis=1)[:, 0]
        agree.append(chosen >= ours.max(axis=1) - _TIE)
    return float(np.concatenate(agree).mean())


def table(parity: Parity) -> str:
    """The parity as text, one line per comparison."""
    lines = [f"{'file':<26}{'batch':>6}{'tokens':>8}{'inputs':>8}{'max |diff|':>13}{'min cosine':>14}"]
    lines += [
        f"{row.file:<26}{row.batch:>6}{row.tokens or '':>8}{row.inputs:>8}"
        f"{row.max_abs_diff:>13.1e}{row.least_cosine:>14.7f}"
        for row in parity.rows
    ]
    verdict = "accepted" if parity.accepted else "rejected"
    lines.append(
        f"top-1 agreement {parity.top1_agreement:.1%} over {parity.images} images and {parity.captions} "
        f"captions, max |diff| {parity.max_abs_diff:.1e} (tolerance {parity.tolerance:.0e}): {verdict}"
    )
    return "\n".join(lines)


def _row(file: str, batch: int, tokens: int | None, ours: FloatArray, theirs: FloatArray) -> ParityRow:
    """One line of the table. NaN counts as an infinite difference."""
    difference = np.nan_to_num(np.abs(ours - theirs), nan=np.inf)
    cosine = np.nan_to_num((ours * theirs).sum(axis=1, dtype=np.float64), nan=-1.0)
    return ParityRow(
        file=file,
        batch=batch,
        tokens=tokens,
        inputs=len(ours),
        max_abs_diff=min(float(difference.max()), 1e30),
        least_cosine=float(cosine.min()),
    )


def _both(ours: Encode, theirs: Encode, inputs: FloatArray | IntArray, batch: int) -> tuple[FloatArray, FloatArray]:
    parts = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
    return np.concatenate([ours(part) for part in parts]), np.concatenate([theirs(part) for part in parts])


def _torch(encode: Callable[[torch.Tensor], torch.Tensor]) -> Encode:
    def run(inputs: FloatArray | IntArray) -> FloatArray:
        with torch.inference_mode():
            return np.asarray(encode(torch.from_numpy(inputs)).numpy())

    return run


def _onnx(path: Path, input_name: str) -> Encode:
    session = make_session(path.read_bytes(), path.name, "cpu", PROVIDERS["cpu"])

    def run(inputs: FloatArray | IntArray) -> FloatArray:
        return np.asarray(session.run(None, {input_name: inputs})[0])

    return run
