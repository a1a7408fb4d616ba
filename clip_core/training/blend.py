"""Interpolation between initial and fine-tuned weights (WiSE-FT; Wortsman et al. 2022, "Robust fine-tuning of
zero-shot models"), which often keeps most of what was learned and forgets less.
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
from clip_core.run.paths import RunPaths
from clip_core.run.records import Blend, Blends
from clip_core.run.writer import RunWriter
from clip_core.training.ema import plain_copy

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def blend_name(share: float) -> str:
    return f"blend_{share:g}"


def store_initial_weights(run: Path, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights that fine-tuning starts from into the run."""
    with replacing(RunPaths(run).initial_weights) as beside:
        save_file({name: value.contiguous() for name, value in weights.items()}, beside)


def blend_weights(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) x start + share x end; exactly `start` at 0 and `end` at 1."""
    return {
        name: torch.lerp(start[name].to(value.device), value, share) if value.is_floating_point() else value
        for name, value in end.items()
    }


def finish_with_blend(
    writer: RunWriter,
    model: CLIP,
    share: float,
    evaluate: Callable[[CLIP], dict[str, float]],
    *,
    step: int,
    epoch: int,
) -> list[Blend]:
    """Evaluate the blends, write blends.json, and make the requested blend the best checkpoint.

    Args:
        model: the fine-tuned weights, without adapters; not changed.
        share: share of the fine-tuned weights in the blend that is saved.
    Raises:
        RunError: if the run no longer holds its initial weights.
    """
    path = writer.paths.initial_weights
    if not path.is_file():
        raise RunError(f"{path}, the initial weights of this run, is missing; it cannot be blended.")
    start, end = load_tensors(path), model.state_dict()
    blended = plain_copy(model)
    line = []
    for point in sorted({*SHARES, share}):
        blended.load_state_dict(blend_weights(start, end, point), strict=True)
        line.append(Blend(share=point, scores=evaluate(blended)))
    Blends(chosen=share, step=step, blends=line).write(writer.paths.blends)
    scores = next(b.scores for b in line if b.share == share)
    blended.load_state_dict(blend_weights(start, end, share), strict=True)
    folder = writer.paths.checkpoints / blend_name(share)
    save_checkpoint(folder, model=blended, tensors={}, state={"blend": share}, step=step, epoch=epoch, scores=scores)
    writer.point_best(folder.name, step, scores, blend=share)
    return line
