"""The variants of a bundle: fp32, and what is made from it, each with the proof that it may be used."""

from collections.abc import Sequence
from pathlib import Path

from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import ParityError
from clip_core.inference.manifest import DATA, PRECISIONS, ParityRow, Precision, Variant, onnx_files
from export.job import ExportJob
from export.parity import Reference, Samples, table
from export.sessions import Array

_CALIBRATION = 8  # inputs of a batch


def make_variants(
    job: ExportJob,
    folder: Path,
    precisions: Sequence[Precision],
    reference: Reference,
    inputs: tuple[list[Array], list[Array]],
    rows: tuple[ParityRow, ...] = (),
    *,
    accept_loss: bool = False,
) -> tuple[Variant, ...]:
    """Make each precision from the fp32 files below `folder` and prove it; fp32 stays only if it is asked for.

    Args:
        inputs: batches of images and of captions, for calibration and for the choice of a way.
        rows: more rows of the parity of fp32, of files that are made from its own.
        accept_loss: keep a lower precision that loses more than it may.
    Raises:
        ParityError: naming the variant that is not good enough.
        BackendError: if a graph cannot be quantised.
    """
    variants = []
    for precision in (each for each in PRECISIONS if each == "fp32" or each in precisions):
        how = _make(job, folder, precision, inputs) if precision != "fp32" else {}
        job.now(f"measuring the parity of {precision}")
        variant = reference.compare(folder, precision, how)
        if precision == "fp32":
            parity = variant.parity.model_copy(update={"rows": variant.parity.rows + rows})
            variant = variant.model_copy(update={"parity": parity})
        job.say(table(variant))
        check_variant(job, variant, accept_loss=accept_loss)
        variants.append(variant)
    if "fp32" not in precisions:
        del variants[0]
        for name in onnx_files("fp32"):
            (folder / name).unlink()
            (folder / (name + DATA)).unlink(missing_ok=True)
    return tuple(variants)


def _make(
    job: ExportJob, folder: Path, precision: Precision, inputs: tuple[list[Array], list[Array]]
) -> dict[str, str]:
    how = {}
    for source, target, batches in zip(onnx_files("fp32"), onnx_files(precision), inputs, strict=True):
        job.now(f"writing {target}")
        if precision == "fp16":
            from export.half import to_half

            how[target] = to_half(folder / source, folder / target, batches)
        else:
            from export.int8 import quantise

            how[target] = quantise(folder / source, folder / target, batches, job.say)
    return how


def check_variant(job: ExportJob, variant: Variant, *, accept_loss: bool) -> None:
    """Refuse a variant that is not good enough.

    Raises:
        ParityError: naming what it loses, unless that is accepted.
    """
    failure = variant.parity.failure
    if failure is None:
        return
    if variant.precision == "fp32":
        raise ParityError(
            f"the ONNX files of {job.source} differ from the model: {failure}; nothing was written to {job.out}."
        )
    if not accept_loss:
        raise ParityError(
            f"the {variant.precision} variant of {job.source} loses too much: {failure}; leave it out of "
            f"--precision, or keep it with --accept-loss; nothing was written to {job.out}."
        )
    job.say(f"note: the {variant.precision} variant is kept as asked for: {failure}")


def calibration_inputs(tokenizer: Tokenizer, samples: Samples) -> tuple[list[Array], list[Array]]:
    """Batches of images and of captions; captions have the length of the longest of their batch."""
    pixels = samples.pixel_values if samples.pairs is None else samples.pairs.pixel_values[:64]
    captions = samples.captions if samples.pairs is None else samples.pairs.captions[:64]
    images: list[Array] = [pixels[start : start + _CALIBRATION] for start in range(0, len(pixels), _CALIBRATION)]
    texts: list[Array] = [
        tokenizer.encode(captions[start : start + _CALIBRATION]) for start in range(0, len(captions), _CALIBRATION)
    ]
    return images, texts
