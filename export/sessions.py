"""ONNX files as functions, for their parity, their choice and their bench."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clip_core.inference.onnx_encoder import make_session, run_session
from clip_core.scoring import FloatArray, IntArray

Array = FloatArray | IntArray
Encode = Callable[[Array], FloatArray]


def open_onnx(path: Path, device: str = "cpu") -> Encode:
    """An ONNX file with one input as a function of one batch; it returns the first output.

    Raises:
        BundleError, BackendError: as `make_session`.
    """
    run_all = open_every_output(path, device)
    return lambda inputs: run_all(inputs)[0]


def open_every_output(path: Path, device: str = "cpu") -> Callable[[Array], list[FloatArray]]:
    """The same with all outputs."""
    session = make_session(path, path.name, device)
    name = session.get_inputs()[0].name
    outputs = [each.name for each in session.get_outputs()]

    def run(inputs: Array) -> list[FloatArray]:
        return run_session(session, outputs, {name: inputs})

    return run


def in_batches(encode: Encode, inputs: Array, batch: int) -> FloatArray:
    """All inputs through `encode`, so many at once."""
    return np.concatenate([encode(inputs[start : start + batch]) for start in range(0, len(inputs), batch)])


def least_and_mean_cosine(ours: Sequence[FloatArray], theirs: Sequence[FloatArray]) -> tuple[float, float]:
    """Of L2-normalised rows; NaN counts as -1, what rounding lifts over 1 as 1."""
    products = (np.concatenate(ours).astype(np.float64) * np.concatenate(theirs)).sum(axis=1)
    cosines = np.minimum(np.nan_to_num(products, nan=-1.0), 1.0)
    return float(cosines.min()), float(cosines.mean())
