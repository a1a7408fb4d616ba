"""Blends of the weights at the start with those at the end (Wortsman et al. 2022, "Robust fine-tuning of zero-shot
models", WiSE-FT): on the line between the two there often is a model that learned most and forgot little.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from clip_core.errors import RunError
from clip_core.files import replacing
from clip_core.model.checkpoint import load_tensors, save_checkpoint
from clip_core.model.clip import CLIP
from clip_core.run.records import Blend, Blends
from clip_core.run.writer import RunWriter
from clip_core.training.ema import plain_copy

LINE = (0.0, 0.25, 0.5, 0.75, 1.0)
START_FILE = "init.safetensors"


def blend_name(share: float) -> str:
    return f"blend_{share:g}"


def keep_start(run: Path, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights that tuning starts from into the run."""
    with replacing(run / START_FILE) as beside:
        save_file({name: value.contiguous() for name, value in weights.items()}, beside)


def blend_weights(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) x start + share x end, exactly either of them at 0 and at 1."""
    return {name: torch.lerp(start[name].to(value.device), value, share) for name, value in end.items()}


def finish_with_blend(
    writer: RunWriter,
    model: CLIP,
    share: float,
    judge: Callable[[CLIP], dict[str, float]],
    *,
    step: int,
    epoch: int,
) -> list[Blend]:
    """Judge the line of blends, keep it in blends.json, and make the one asked for the run's chosen checkpoint.

    Args:
        model: plain, as it is at the end; not changed.
        share: of the end's weights, in the blend that is kept.
    Raises:
        RunError: if the copy of the starting weights is gone from the run.
    """
    run = writer.path
    if not (run / START_FILE).is_file():
        raise RunError(f"{run / START_FILE}, the weights that this run started from, is gone; nothing can be blended.")
    start, end = load_tensors(run / START_FILE), model.state_dict()
    blended = plain_copy(model)
    line = []
    for point in sorted({*LINE, share}):
        blended.load_state_dict(blend_weights(start, end, point), strict=True)
        line.append(Blend(share=point, scores=judge(blended)))
    Blends(chosen=share, step=step, blends=line).write(writer.paths.blends)
    scores = next(b.scores for b in line if b.share == share)
    blended.load_state_dict(blend_weights(start, end, share), strict=True)
    folder = run / "checkpoints" / blend_name(share)
    save_checkpoint(folder, model=blended, tensors={}, state={"blend": share}, step=step, epoch=epoch, scores=scores)
    writer.point_best(folder.name, step, scores, blend=share)
    return line
