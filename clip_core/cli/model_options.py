"""The model and the backend that clip-infer's commands share."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from clip_core.errors import UsageError
from clip_core.text import printable

if TYPE_CHECKING:
    from clip_core.inference.clip import CLIPInference

Precision = Literal["fp32", "fp16", "int8"]


@Parameter(name="*")
@dataclass(frozen=True)
class ModelChoice:
    """The model and the backend, without the precision."""

    model: Annotated[
        Path | None,
        Parameter(
            name=["--model", "--model-path"],
            help="run directory, checkpoint, ONNX bundle or published weights (default: the latest run below ./runs)",
        ),
    ] = None
    init_model: Annotated[
        str | None,
        Parameter(
            help="open_clip's name of the architecture where published weights do not say it, or gelu or quickgelu"
        ),
    ] = None
    backend: Annotated[
        Literal["auto", "torch", "onnx"],
        Parameter(help="auto: PyTorch for a run, else its bundle; onnx: a run's bundle"),
    ] = "auto"
    device: Annotated[
        str | None,
        Parameter(
            help="cpu, cuda, cuda:N or mps; with onnx also tensorrt, coreml, directml (default: first available; "
            "onnx: cpu)"
        ),
    ] = None

    def open(self, precision: Precision | None = None) -> "CLIPInference":
        """Load the model; what a user should know about it is said on standard error."""
        from clip_core.inference.clip import CLIPInference

        clip = CLIPInference(self.model or latest_run(), self.backend, self.device, self.init_model, precision)
        if clip.note:
            print(f"note: {printable(clip.note)}", file=sys.stderr)
        return clip


@Parameter(name="*")
@dataclass(frozen=True)
class Model(ModelChoice):
    """The model and the backend."""

    precision: Annotated[Precision | None, Parameter(help="variant of a bundle (default: its first)")] = None

    def load(self) -> "CLIPInference":
        return self.open(self.precision)


def latest_run() -> Path:
    """The latest run below ./runs that has a checkpoint or a bundle.

    Raises:
        UsageError: if there is none.
    """
    from clip_core.run.paths import find_runs
    from clip_core.run.reader import RunReader

    for run in find_runs(Path("runs")):
        reader = RunReader(run)
        if reader.chosen_checkpoint() or reader.bundle_source():
            return run
    raise UsageError("there is no trained run below ./runs; name a model with --model, or train one: clip-train")
