"""The first run of a stranger's ONNX files, by a child: a graph may compute for hours or ask for all memory.

As a program: `python -m clip_core.model.onnx_trial`, by clip_core/trial.py; the task is a JSON list of `_Run`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from clip_core.text import printable
from clip_core.trial import Limits, run_trial, try_first

_SECONDS = 300.0  # of processor time, for one input of each file; the largest networks take 100 on a slow machine
_BYTES = 4 * 2**30  # for them, and four times the size of the files
_MOST_THREADS = 4
_LOG_OFF = 4  # errors are raised, and the log would print the names of a file as they are
_SIDE = 224  # of images, where a file takes any
_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}


class OneInput(NamedTuple):
    """An ONNX file and the one input that it is tried with, all of one value.

    `shape` None: images of the size that the file states, or of `_SIDE` pixels.
    """

    path: Path
    shape: tuple[int, ...] | None
    dtype: str = "float32"
    value: int = 0


def try_onnx(runs: Sequence[OneInput], hashes: Sequence[str], size: int, seconds: float = _SECONDS) -> None:
    """Let a child run files that this machine has not run.

    Args:
        hashes: sha256 of every file that belongs to them.
        size: of all these files, bytes.
        seconds: of processor time.
    Raises:
        TrialError: if they do not run, or not within the limits.
    """
    task = json.dumps([(str(run.path.absolute()), *run[1:]) for run in runs]).encode()
    try_first(onnx_key(hashes), "clip_core.model.onnx_trial", task, Limits(seconds, _BYTES + 4 * size))


def onnx_key(hashes: Sequence[str]) -> str:
    """By which `clip_core.trial` remembers files that ran."""
    return f"onnxruntime {ort.__version__} {' '.join(hashes)}"


def work(task: bytes) -> None:
    """Load without folding constants, which moves all computing to the run, and run.

    Raises:
        ValueError: naming the file, and what ONNX Runtime says or what is wrong with its inputs.
    """
    for path, shape, dtype, value in json.loads(task):
        name = Path(path).name
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_OFF
        options.intra_op_num_threads = min(os.cpu_count() or 1, _MOST_THREADS)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(
                path, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
            )
        except Exception as error:  # one of a dozen classes of the library, which have no common base
            raise ValueError(f"ONNX Runtime does not accept {name}: {error}") from None
        if shape is None:
            shape = (1, 3, *[image_side(session) or _SIDE] * 2)
        elif not _fits(session.get_inputs(), dtype, shape):
            raise ValueError(f"{name} has other inputs or outputs than its manifest says")
        try:
            session.run(None, {session.get_inputs()[0].name: np.full(shape, value, dtype)})
        except Exception as error:
            outputs = " and ".join(each.name for each in session.get_outputs())
            raise ValueError(f"ONNX Runtime could not compute {outputs:.80}: {error}") from None


def image_side(session: ort.InferenceSession) -> int | None:
    """The side of the images that an image encoder is for; None where it takes any.

    Raises:
        ValueError: if its input is not float (batch, 3, S, S); to be said after the file's path.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(session.get_outputs()) < 1:
        names = ", ".join(printable(each.name, 30) for each in inputs)
        raise ValueError(f"has {len(inputs)} inputs ({names}); an image encoder has one, of pixels")
    kind, shape = inputs[0].type, inputs[0].shape
    fixed = [size if isinstance(size, int) else None for size in shape]
    if kind != _TYPES["float32"] or len(fixed) != 4 or fixed[1] not in (3, None) or fixed[2] != fixed[3]:
        raise ValueError(
            f"takes {kind} of shape {printable(str(shape), 60)}; an image encoder takes float pixels of shape "
            "(batch, 3, S, S)"
        )
    return fixed[2]


def _fits(inputs: Sequence[Any], dtype: str, shape: Sequence[int]) -> bool:
    """Whether there is one input, and it can be given so."""
    if len(inputs) != 1 or inputs[0].type != _TYPES[dtype] or len(inputs[0].shape) != len(shape):
        return False
    return all(not isinstance(size, int) or size == own for size, own in zip(inputs[0].shape, shape, strict=True))


if __name__ == "__main__":
    run_trial(work)
